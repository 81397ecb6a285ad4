// The weightless ONNX graph of a checkpoint as plain data, read from its protobuf wire format.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "span.h"

namespace emq {

// ONNX's numbers of element types.
enum class Element {
    none = 0, float32 = 1, uint8 = 2, int8 = 3, uint16 = 4, int16 = 5, int32 = 6, int64 = 7, boolean = 9, float16 = 10,
    float64 = 11, uint32 = 12, uint64 = 13, uint4 = 21, int4 = 22, uint2 = 25
};

// A constant that the graph holds itself: whole numbers or floats, whichever its type has. `open` is one whose numbers
// come from the checkpoint.
struct Constant {
    Element type = Element::none;
    std::vector<int64_t> shape;
    std::vector<int64_t> integers;
    bool open = false;
    bool zero = false;  // whether it is one float that is zero
};

struct Node {
    std::string operation, name;
    std::vector<std::string> inputs, outputs;
    std::map<std::string, std::vector<int64_t>> attributes;  // whole numbers only

    // Throws `Failure` where the operator has fewer.
    const std::string &input(size_t index) const;
    int64_t number(const char *attribute, int64_t otherwise) const;
    const std::vector<int64_t> &numbers(const char *attribute) const;  // empty where it is not there
};

// What goes in or comes out; a side of -1 is free.
struct Value {
    std::string name;
    Element type = Element::none;
    bool codes = false;  // whether it is uint8
    std::vector<int64_t> shape;
};

struct Graph {
    std::vector<Node> nodes;
    std::map<std::string, Constant> constants;
    std::vector<Value> inputs, outputs;
};

// Throws `Failure` for bytes that are no such graph.
Graph read_graph(Span data);

}  // namespace emq
