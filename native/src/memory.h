// Memory for vectors: aligned, zeroed, with room to read beyond the end.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "kernels/kernels.h"

namespace emq {

template <typename T>
class Array {
  public:
    Array() = default;
    explicit Array(size_t count) : count_(count) {
        const size_t bytes = (count * sizeof(T) + slack + alignment - 1) / alignment * alignment;
        void *memory = std::aligned_alloc(alignment, bytes);
        if (memory == nullptr) throw std::bad_alloc();
        std::memset(memory, 0, bytes);
        data_.reset(static_cast<T *>(memory));
    }

    T *data() { return data_.get(); }
    const T *data() const { return data_.get(); }
    T &operator[](size_t index) { return data_[index]; }
    const T &operator[](size_t index) const { return data_[index]; }
    size_t size() const { return count_; }
    size_t bytes() const { return count_ * sizeof(T); }

  private:
    static constexpr size_t alignment = 64;
    struct Free {
        void operator()(T *memory) const { std::free(memory); }
    };
    std::unique_ptr<T[], Free> data_;
    size_t count_ = 0;
};

}  // namespace emq
