// The weightless ONNX graph of a checkpoint as plain data, read from its protobuf wire format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace emq {

// A constant that the graph holds itself: whole numbers or floats, whichever its type has. `open` is one whose numbers
// come from the checkpoint.
struct Constant {
    std::vector<int64_t> shape;
    std::vector<int64_t> integers;
    bool open = false;
};

struct Node {
    std::string operation, name;
    std::vector<std::string> inputs, outputs;
    std::map<std::string, std::vector<int64_t>> attributes;  // whole numbers only

    int64_t number(const char *attribute, int64_t otherwise) const;
    const std::vector<int64_t> &numbers(const char *attribute) const;  // empty where it is not there
};

struct Graph {
    std::vector<Node> nodes;
    std::map<std::string, Constant> constants;
    std::string input, output;
};

// Throws `Failure` for bytes that are no such graph.
Graph read_graph(const uint8_t *data, size_t size);

}  // namespace emq
