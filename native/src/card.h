// What the card of an `.emq` says: read in full, kept where a program needs it.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "json.h"

namespace emq {

constexpr int64_t largest_side = 1 << 16;
constexpr double largest_number = 1e30;
constexpr size_t most_children = 256;

// What people have to know of a network to use it.
struct Card {
    std::vector<std::string> classes;
    int channels = 0, height = 0, width = 0;
    std::vector<float> mean, deviation;  // per channel, of pixels from 0 to 1
    bool bgr = false;                    // whether the network takes blue first
    bool full_levels = false;
};

// Throws `Failure` for a card that is none. `judged` gets the names of the children that it says something of.
Card read_card(Json &json, std::set<std::string> &judged);
// The next numbers, of up to `largest_number`.
std::vector<float> read_numbers(Json &json, bool positive);

}  // namespace emq
