// The container of an `.emq`: tensors, each with a digest, and a text of ours; `docs/format.md` describes it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "failure.h"
#include "span.h"

namespace emq {

enum class Type { uint8, int8, float32 };

class TensorFile {
  public:
    // The bytes have to live as long; `name` is what errors call them.
    TensorFile(std::string name, Span bytes);

    const std::string &header() const { return header_; }
    [[noreturn]] void fail(const std::string &what, const char *remedy = "use the original file or train again") const;
    // Does something with what the file holds; a failure of it is the file's.
    template <typename Work>
    void held_to(Work &&work) const {
        try {
            work();
        } catch (const Failure &failure) {
            fail(std::string("is damaged (") + failure.what() + ")");
        }
    }
    // What a tensor holds, once it matches its digest.
    Span tensor(const std::string &tensor) const;
    bool has(const std::string &tensor) const { return table_.count(tensor) != 0; }
    const std::vector<int64_t> &shape(const std::string &tensor) const { return table_.at(tensor).shape; }
    // Throws unless the tensor is there, of this type and of one side (-1: any shape).
    void check(const std::string &tensor, Type type, int64_t count) const;
    size_t tensors() const { return table_.size(); }

    std::map<std::string, std::string> digests;  // by tensor; whoever reads the header sets them

  private:
    struct Entry {
        std::string type;  // as the file writes it
        std::vector<int64_t> shape;
        uint64_t begin = 0, end = 0;  // in the file
    };

    void read_table();
    void check_extents();

    const std::string name_;
    const Span bytes_;
    std::string header_;
    uint64_t start_ = 0;  // of the first tensor
    std::map<std::string, Entry> table_;
};

}  // namespace emq
