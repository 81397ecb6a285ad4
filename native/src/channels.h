// The channels of a value that splits, joins and shuffles made: stretches of tensors, which nothing has moved yet.
#pragma once

#include <string>
#include <vector>

namespace emq {

struct Stretch {
    int tensor;
    std::string site;  // the grid of its codes
    int from, count;
};

class Channels {
  public:
    Channels() = default;
    explicit Channels(const Stretch &whole) { append(whole); }

    const std::vector<Stretch> &stretches() const { return stretches_; }
    bool empty() const { return stretches_.empty(); }
    int count() const { return count_; }
    // Throws `Failure` where there are too many stretches, or channels.
    void append(const Stretch &stretch);
    void append(const Channels &others);
    Channels part(int from, int count) const;
    // Read as a matrix of so many rows, and turned over: the shuffle of channels among groups.
    Channels turned(int rows) const;

  private:
    std::vector<Stretch> stretches_;
    int count_ = 0;
};

}  // namespace emq
