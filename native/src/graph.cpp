#include "graph.h"

#include <cstring>
#include <functional>

#include "failure.h"
#include "utf8.h"

namespace emq {
namespace {

constexpr uint64_t newest_operators = 30;
constexpr size_t most_nodes = 50000, most_names = 1024, longest_name = 1024;

enum Wire { varint_wire = 0, fixed64_wire = 1, bytes_wire = 2, fixed32_wire = 5 };

// ONNX's numbers of element types.
enum Element { uint8_element = 2, int8_element = 3, int32_element = 6, int64_element = 7, bool_element = 9 };

struct Field {
    unsigned number;
    Wire wire;
    uint64_t value;
    Span bytes;
};

class Reader {
  public:
    explicit Reader(Span span) : at_(span.data), end_(span.data + span.size) {}

    bool next(Field &field) {
        if (at_ == end_) return false;
        const uint64_t key = varint();
        field = {static_cast<unsigned>(key >> 3), static_cast<Wire>(key & 7), 0, {}};
        switch (field.wire) {
            case varint_wire: field.value = varint(); return true;
            case bytes_wire: field.bytes = take(varint()); return true;
            case fixed64_wire: field.bytes = take(8); return true;
            case fixed32_wire: field.bytes = take(4); return true;
        }
        throw Failure("the graph is no protobuf message");
    }

  private:
    uint64_t varint() {
        uint64_t value = 0;
        for (int shift = 0; shift < 64 && at_ != end_; shift += 7) {
            const uint8_t byte = *at_++;
            value |= static_cast<uint64_t>(byte & 0x7f) << shift;
            if (byte < 0x80) return value;
        }
        throw Failure("a number in the graph has no end");
    }

    Span take(uint64_t length) {
        if (length > static_cast<uint64_t>(end_ - at_)) throw Failure("the graph is cut off");
        const Span span{at_, static_cast<size_t>(length)};
        at_ += span.size;
        return span;
    }

    const uint8_t *at_, *end_;
};

std::string name_in(const Field &field) {
    if (field.bytes.size > longest_name) throw Failure("a name in the graph is too long");
    const uint8_t *at = field.bytes.data, *const end = at + field.bytes.size;
    while (at != end) {
        const int length = letter_length(at, end);
        if (length == 0) throw Failure("a name in the graph is no text");
        at += length;
    }
    return field.bytes.text();
}

void append(std::vector<int64_t> &numbers, const Field &field) {
    if (field.wire == varint_wire) {
        numbers.push_back(static_cast<int64_t>(field.value));
        return;
    }
    // Packed: read as a message of nothing but values would fail on keys, so the varints are walked here.
    const uint8_t *at = field.bytes.data, *const end = at + field.bytes.size;
    while (at != end) {
        uint64_t value = 0;
        int shift = 0;
        uint8_t byte = 0;
        do {
            if (at == end || shift > 63) throw Failure("a number in the graph has no end");
            byte = *at++;
            value |= static_cast<uint64_t>(byte & 0x7f) << shift;
            shift += 7;
        } while (byte >= 0x80);
        numbers.push_back(static_cast<int64_t>(value));
    }
}

template <typename T>
void append_raw(std::vector<int64_t> &numbers, Span raw) {
    for (size_t at = 0; at + sizeof(T) <= raw.size; at += sizeof(T)) {
        T value;
        std::memcpy(&value, raw.data + at, sizeof value);
        numbers.push_back(static_cast<int64_t>(value));
    }
}

void read_constant(Span span, Graph &graph) {
    Constant constant;
    std::string name;
    uint64_t kind = 0;
    Span raw;
    Reader reader(span);
    for (Field field; reader.next(field);) {
        switch (field.number) {
            case 1: append(constant.shape, field); break;
            case 2: kind = field.value; break;
            case 5:
            case 7: append(constant.integers, field); break;
            case 8: name = name_in(field); break;
            case 9: raw = field.bytes; break;
            case 14: constant.open = field.value == 1; break;
            default: break;
        }
    }
    switch (kind) {
        case uint8_element:
        case bool_element: append_raw<uint8_t>(constant.integers, raw); break;
        case int8_element: append_raw<int8_t>(constant.integers, raw); break;
        case int32_element: append_raw<int32_t>(constant.integers, raw); break;
        case int64_element: append_raw<int64_t>(constant.integers, raw); break;
        default: break;
    }
    if (!graph.constants.emplace(name, std::move(constant)).second) {
        throw Failure("the graph has constant " + name + " twice");
    }
}

Node read_node(Span span) {
    Node node;
    std::string domain;
    Reader reader(span);
    for (Field field; reader.next(field);) {
        switch (field.number) {
            case 1: node.inputs.push_back(name_in(field)); break;
            case 2: node.outputs.push_back(name_in(field)); break;
            case 3: node.name = name_in(field); break;
            case 4: node.operation = name_in(field); break;
            case 7: domain = name_in(field); break;
            case 5: {
                std::string name;
                std::vector<int64_t> numbers;
                Reader inner(field.bytes);
                for (Field part; inner.next(part);) {
                    if (part.number == 1) name = name_in(part);
                    if (part.number == 3 || part.number == 8) append(numbers, part);
                    // A text is how ONNX writes that padding is not given as numbers, or (NOTSET) that it is.
                    if (part.number == 4) numbers = {part.bytes.text() == "NOTSET" ? 0 : 1};
                }
                node.attributes[name] = std::move(numbers);
                break;
            }
            default: break;
        }
    }
    if (node.outputs.empty()) throw Failure("operator " + node.operation + " of the graph has no output");
    if (node.inputs.size() > most_names || node.outputs.size() > most_names) {
        throw Failure("operator " + node.operation + " of the graph has too many inputs or outputs");
    }
    if (!domain.empty() && domain != "ai.onnx") {
        throw Failure("the graph uses operator " + node.operation + " of domain " + domain);
    }
    return node;
}

// Visits the fields of a number in a message.
void inside(Span span, unsigned number, const std::function<void(const Field &)> &each) {
    Reader reader(span);
    for (Field field; reader.next(field);) {
        if (field.number == number) each(field);
    }
}

// The sides of a tensor's type, -1 for one that is free.
std::vector<int64_t> read_sides(Span shape) {
    std::vector<int64_t> sides;
    inside(shape, 1, [&](const Field &side) {
        sides.push_back(-1);
        inside(side.bytes, 1, [&](const Field &value) { sides.back() = static_cast<int64_t>(value.value); });
    });
    return sides;
}

Value read_value(Span span) {
    Value value;
    Reader reader(span);
    for (Field field; reader.next(field);) {
        if (field.number == 1) value.name = name_in(field);
        if (field.number != 2) continue;
        inside(field.bytes, 1, [&](const Field &tensor) {
            inside(tensor.bytes, 1, [&](const Field &type) { value.codes = type.value == uint8_element; });
            inside(tensor.bytes, 2, [&](const Field &shape) { value.shape = read_sides(shape.bytes); });
        });
    }
    return value;
}

// The set of operators that a graph names is one of ONNX's that there are.
void check_operators(Span span) {
    std::string domain;
    uint64_t version = 0;
    Reader reader(span);
    for (Field field; reader.next(field);) {
        if (field.number == 1) domain = name_in(field);
        if (field.number == 2) version = field.value;
    }
    if ((domain.empty() || domain == "ai.onnx") && (version < 1 || version > newest_operators)) {
        throw Failure("the graph names operator set " + std::to_string(version));
    }
}

Graph read_body(Span span) {
    Graph graph;
    Reader reader(span);
    for (Field field; reader.next(field);) {
        if (field.wire != bytes_wire) continue;
        switch (field.number) {
            case 1: graph.nodes.push_back(read_node(field.bytes)); break;
            case 5: read_constant(field.bytes, graph); break;
            case 11: graph.inputs.push_back(read_value(field.bytes)); break;
            case 12: graph.outputs.push_back(read_value(field.bytes)); break;
            default: break;
        }
        if (graph.nodes.size() > most_nodes) {
            throw Failure("the graph has more than " + std::to_string(most_nodes) + " operators");
        }
    }
    return graph;
}

}  // namespace

int64_t Node::number(const char *attribute, int64_t otherwise) const {
    const auto found = attributes.find(attribute);
    return found == attributes.end() || found->second.empty() ? otherwise : found->second.front();
}

const std::vector<int64_t> &Node::numbers(const char *attribute) const {
    static const std::vector<int64_t> none;
    const auto found = attributes.find(attribute);
    return found == attributes.end() ? none : found->second;
}

const std::string &Node::input(size_t index) const {
    if (index >= inputs.size()) throw Failure("operator " + operation + " (" + name + ") lacks an input");
    return inputs[index];
}

Graph read_graph(Span data) {
    std::vector<Graph> graphs;
    Reader reader(data);
    for (Field field; reader.next(field);) {
        if (field.number > 8 && field.number != 14) throw Failure("the graph comes with functions or a training");
        if (field.number == 7 && field.wire == bytes_wire) graphs.push_back(read_body(field.bytes));
        if (field.number == 8 && field.wire == bytes_wire) check_operators(field.bytes);
    }
    if (graphs.size() != 1) throw Failure("the file holds other than one graph");
    return std::move(graphs.front());
}

}  // namespace emq
