// What a network computes, step by step, in integers: lowered from the graph, the same for every child.
#pragma once

#include <string>
#include <vector>

#include "graph.h"

namespace emq {

struct Shape {
    int channels = 0, height = 1, width = 1;
    size_t values() const { return static_cast<size_t>(channels) * height * width; }
};

// A tensor of codes in NHWC. `border` pixels of zeros stand around it, as much as any reader pads.
struct Tensor {
    Shape shape;
    int border = 0;
    int readers = 0;

    int stride() const { return (shape.channels + 3) / 4 * 4; }  // bytes of a pixel
    int row() const { return shape.width + 2 * border; }         // pixels
    int pixels() const { return (shape.height + 2 * border) * row(); }
    int first() const { return border * row() + border; }  // pixel of the upper left value
};

struct Geometry {
    int kernel_height = 1, kernel_width = 1;
    int stride_height = 1, stride_width = 1;
    int top = 0, left = 0, bottom = 0, right = 0;
    int dilation_height = 1, dilation_width = 1;
    int groups = 1;
};

// What a request hands in or gets, per image: float32 or codes, in planes of channels or in rows of them.
struct Port {
    Shape shape;
    bool planes, codes;
    size_t bytes() const { return shape.values() * (codes ? 1 : sizeof(float)); }
};

enum class Kind { quantize, take, layer, add, maximum, average, mean, join, answer, give };

// Channels of an input of a join, which are the next ones of its output.
struct Run {
    int input;  // among the inputs of the step; -1 for zeros
    int from, count;
};

struct Step {
    Kind kind;
    std::string name;                      // of a layer; else of the operator
    std::vector<int> inputs;               // tensors
    std::vector<std::string> input_sites;  // the grids that they are on
    int output = -1;                       // tensor; -1 where the step answers a port
    int port = -1;                         // of the inputs that it reads, or of the outputs that it answers
    std::string site;                      // the grid of the output
    std::string clamp;                     // the site whose bounds the output keeps; empty for all of a byte
    Geometry geometry;
    std::vector<Run> runs;  // of a join, whose geometry is the zeros around it
    // Of an average: how far beyond the input the places of a window count.
    int counted_top = 0, counted_left = 0, counted_bottom = 0, counted_right = 0;
    bool flat = false;  // a layer that reads all pixels of its input at once
    bool shown = false;  // whether the output is what the graph calls the codes of its site
};

struct Program {
    std::vector<Port> inputs, outputs;
    std::vector<Tensor> tensors;
    std::vector<Step> steps;
    std::vector<std::pair<std::string, int>> zero_points;  // per site
    int zero_point(const std::string &site) const;
};

// Lowers a graph. `layer_outputs` gives the output channels of a layer by name.
// Throws `Failure` with the name of an operator that has no integer kernel here.
class LayerShapes {
  public:
    virtual ~LayerShapes() = default;
    virtual int outputs(const std::string &layer) const = 0;
};

// The graph's ends say their shapes: (images, channels, height, width), or (rows, channels) with the rows of one image.
Program lower(const Graph &graph, const LayerShapes &layers);

}  // namespace emq
