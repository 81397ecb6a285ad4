// What the header of an `.emq` says, with the bounds that the format has for it.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "card.h"
#include "span.h"

namespace emq {

// Bits of every layer: of those that are named, and of the rest.
struct Widths {
    int rest = 8;
    std::map<std::string, int> layers;
    int of(const std::string &layer) const;
};

struct ChildRecord {
    std::string name;
    Widths weights, activations;
};

enum class GridKind { odd, integer, table, pinned };

struct LayerRecord {
    std::string name, site;
    size_t site_index = 0;
    std::vector<int64_t> shape;
    GridKind kind = GridKind::odd;
    bool switchable() const { return kind != GridKind::pinned; }
    int64_t outputs() const { return shape[0]; }
    int64_t weights() const;
};

struct SiteRecord {
    std::string name;
    bool is_signed = false, clamped = false;
    int zero_point = -1;  // of a signed tensor in which zero is not in the middle
    std::vector<int> bits;  // per child, as the scales
    std::vector<float> scales;
};

struct Header {
    Card card;
    std::vector<ChildRecord> children;
    std::vector<LayerRecord> layers;
    std::vector<SiteRecord> sites;
    std::map<std::string, std::string> digests;  // of every tensor

    std::vector<int> widths() const;  // of weights, that some switchable layer has at some child, ascending
    std::vector<int> table_widths() const;  // those of layers with tables

  private:
    std::vector<int> widths_of(const std::function<bool(const LayerRecord &)> &meant) const;
};

// The format that a header says it has; throws `Failure` for a text that is no header.
int64_t read_version(Span text);
// Throws `Failure` for what does not fit the format, or one another.
Header read_header(Span text);

}  // namespace emq
