#include "channels.h"

#include <algorithm>

#include "failure.h"

namespace emq {
namespace {

constexpr size_t most_stretches = 1 << 14;
constexpr int most_channels = 1 << 24;

}  // namespace

void Channels::append(const Stretch &stretch) {
    if (stretch.count > most_channels - count_ || stretches_.size() == most_stretches) {
        throw Failure("the graph puts too many channels together; run this network in onnxruntime");
    }
    count_ += stretch.count;
    if (!stretches_.empty()) {
        Stretch &last = stretches_.back();
        if (last.tensor == stretch.tensor && last.from + last.count == stretch.from) {
            last.count += stretch.count;
            return;
        }
    }
    stretches_.push_back(stretch);
}

void Channels::append(const Channels &others) {
    for (const Stretch &stretch : others.stretches_) append(stretch);
}

Channels Channels::part(int from, int count) const {
    Channels found;
    int start = 0;
    for (const Stretch &one : stretches_) {
        const int first = std::max(from, start), end = std::min(from + count, start + one.count);
        if (first < end) found.append({one.tensor, one.site, one.from + first - start, end - first});
        start += one.count;
    }
    return found;
}

Channels Channels::turned(int rows) const {
    if (static_cast<size_t>(count_) > most_stretches) {
        throw Failure("the graph shuffles too many channels; run this network in onnxruntime");
    }
    Channels found;
    const int columns = count_ / rows;
    // One channel at a time: neighbours come from different rows.
    std::vector<Stretch> single;
    for (const Stretch &one : stretches_) {
        for (int i = 0; i < one.count; i++) single.push_back({one.tensor, one.site, one.from + i, 1});
    }
    for (int column = 0; column < columns; column++) {
        for (int row = 0; row < rows; row++) found.append(single[static_cast<size_t>(row * columns + column)]);
    }
    return found;
}

}  // namespace emq
