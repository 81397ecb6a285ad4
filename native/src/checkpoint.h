// A checkpoint: its numbers as the executor takes them.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "header.h"
#include "network.h"
#include "tensor_file.h"

namespace emq {

class Checkpoint {
  public:
    // The bytes have to live as long; `name` is what errors call them. Throws `Failure` for a file that is not what
    // `docs/format.md` says.
    Checkpoint(const std::string &name, Span bytes);

    const Card &card() const { return header_.card; }
    std::unique_ptr<Network> network(int threads, const Kernels &kernels) const;

  private:
    // What a layer is at a child, per output channel.
    struct Numbers {
        std::vector<int32_t> gain, shift, bias;
        std::vector<uint8_t> bits;
        std::vector<float> scale;
    };
    struct Layer {
        const LayerRecord *record;
        std::vector<uint8_t> codes;
        std::vector<Numbers> children;
    };
    // The codes that a site keeps to, per child.
    struct Bounds {
        std::vector<int32_t> lows, highs;
    };
    // Tables of a weight width, and of a child.
    struct Shared {
        Span slope, offset, bits;
    };
    struct Own {
        Span scale, bias, sign;
    };

    void read_header();
    void check_tensors();
    void check_graph() const;
    int planes() const;
    void check_tables() const;
    void read_codes();
    size_t look_up(Layer &layer, size_t first) const;
    const Shared &shared(int width);
    void read_child(size_t index);
    void add_channel(const ChildRecord &child, const LayerRecord &layer, const Own &own, size_t channel,
                     float input_scale, Numbers &numbers) const;
    static void grid_of(const Shared &grid, size_t channel, GridKind kind, Numbers &numbers, size_t n);
    static Bounds bounds_of(const SiteRecord &site, bool full_levels);

    TensorFile file_;
    Header header_;
    std::vector<int> widths_;  // of weights
    std::map<int, Shared> shared_;
    std::vector<Layer> layers_;
    std::vector<Bounds> sites_;
    std::vector<uint8_t> graph_;
};

}  // namespace emq
