// How a graph becomes a program, in three files: operators in program.cpp, grids in grids.cpp, moves in moves.cpp.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "channels.h"
#include "program.h"

namespace emq {

constexpr int64_t largest_tensor = int64_t{1} << 26;  // bytes, its border included

// What a value of the graph is while it is lowered.
struct Lowered {
    enum Form { port, codes, quantized, accumulated, sum, mean, average, parameter } form;
    int tensor = -1;    // of a port its index, of an average that among all of them
    std::string site;   // of codes; the layer of a parameter
    int step = -1;      // that makes it, where its grid is not known yet
    bool flat = false;
    bool tokens = false;     // whether it has rows of channels where others have planes
    Channels channels = {};  // instead of a tensor: where its channels are to be found
    int rows = 0;            // groups of channels that a shuffle is about to turn over
};

// Throws `Failure` for a name that does not end so.
std::string without(const std::string &name, const std::string &ending);

class Lowering {
  public:
    Lowering(const Graph &graph, const LayerShapes &layers) : graph_(graph), layers_(layers) {}

    Program run();

  private:
    static Port port_of(const Value &end);
    void visit(const Node &node);
    void note_sizes(const Node &node);
    void check_known(const Node &node, const std::string &name) const;
    Step &maker(int tensor);
    Lowered lowered(const Node &node, std::vector<Lowered> inputs);
    [[noreturn]] static void refuse_size();
    // Whether a move of values leaves one row of features.
    bool flattens(const Node &node, const Lowered &value) const;
    // The numbers of an input that the graph holds itself; none where it does not.
    const std::vector<int64_t> &constant(const Node &node, size_t input) const;
    int add_tensor(Shape shape);
    void read(int tensor, int border);
    Step &add_step(const Node &node, Kind kind, const std::vector<Lowered> &inputs);
    Lowered pending(const Node &node, Kind kind, Lowered::Form form, const std::vector<Lowered> &inputs);
    Lowered convolution(const Node &node, const std::vector<Lowered> &inputs);
    Lowered linear(const Node &node, const std::vector<Lowered> &inputs);
    // The windows of a pooling, and in `step` what of them counts as padding.
    void set_windows(const Node &node, const Lowered &input, Step &step) const;
    Lowered maximum(const Node &node, const Lowered &input);
    // An average, which whoever quantizes it puts on a grid of its own.
    Lowered average(const Node &node, const Lowered &input);
    int add_average(int index);
    Lowered spread(const Node &node, const Lowered &input, Geometry windows);
    int last_step() const { return static_cast<int>(program_.steps.size()) - 1; }
    const Tensor &tensor(int index) const { return program_.tensors.at(static_cast<size_t>(index)); }
    Shape output_shape(const Step &step, int channels) const;
    void finish();
    [[noreturn]] static void refuse_unread(const std::string &name);
    void finish_output(const Value &end);

    // Grids: what a quantizer makes of the values before it.
    Lowered quantize(const Node &node, const Lowered &input);
    int add_reader(const Node &node, Kind kind, int port, bool codes);
    Lowered take(const Node &node, const Lowered &input);
    void check_alike(const Step &step) const;
    void note_zero_point(const std::string &site, const std::string &constant);
    Lowered clip(const Node &node, const Lowered &input);

    // Moves of channels: nothing is moved until somebody reads them.
    Channels channels_of(const Lowered &value) const;
    bool on_one_grid(const Lowered &value) const;
    Lowered moved(const Lowered &from, const Channels &channels, int rows) const;
    void check_movable(const Node &node, const Lowered &value) const;
    // Channels whose tensors are there: averages among them are put on a grid.
    Channels gridded(const Channels &channels, const std::string &site);
    // The mean of channels that lie on several grids.
    Lowered mean_of_parts(const Node &node, const Lowered &value);
    Lowered joined(const Node &node, const std::vector<Lowered> &inputs) const;
    void split(const Node &node, const Lowered &value);
    Lowered sliced(const Node &node, Lowered value);
    Lowered padded(const Node &node, const Lowered &value);
    // (N, C, H, W) as (N, rows, C / rows, H, W), and back.
    Lowered folded(const Node &node, const Lowered &value) const;
    Lowered shuffled(const Node &node, const Lowered &value) const;
    Lowered unfolded(const Node &node, const Lowered &value) const;
    void add_join(const Node &node, const Channels &channels);
    // The value as a tensor of its own.
    Lowered solid(const Node &node, const Lowered &value);
    Lowered shown(const Node &node, const Lowered &value);

    const Graph &graph_;
    const LayerShapes &layers_;
    std::map<std::string, Lowered> values_;
    std::set<std::string> sizes_;  // names of numbers that sizes are computed with
    std::map<std::string, std::string> unread_;  // values that nothing has read, and the operators that made them
    std::vector<Step> averages_;
    Program program_;
};

}  // namespace emq
