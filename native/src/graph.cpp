#include "graph.h"

#include <cstring>

#include "failure.h"

namespace emq {
namespace {

enum Wire { varint_wire = 0, fixed64_wire = 1, bytes_wire = 2, fixed32_wire = 5 };

// ONNX's numbers of element types.
enum Element { uint8_element = 2, int8_element = 3, int32_element = 6, int64_element = 7, bool_element = 9 };

struct Span {
    const uint8_t *begin, *end;
    std::string text() const { return {reinterpret_cast<const char *>(begin), static_cast<size_t>(end - begin)}; }
};

struct Field {
    unsigned number;
    Wire wire;
    uint64_t value;
    Span bytes;
};

class Reader {
  public:
    explicit Reader(Span span) : at_(span.begin), end_(span.end) {}

    bool next(Field &field) {
        if (at_ == end_) return false;
        const uint64_t key = varint();
        field = {static_cast<unsigned>(key >> 3), static_cast<Wire>(key & 7), 0, {at_, at_}};
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
        const Span span{at_, at_ + length};
        at_ = span.end;
        return span;
    }

    const uint8_t *at_, *end_;
};

void append(std::vector<int64_t> &numbers, const Field &field) {
    if (field.wire == varint_wire) {
        numbers.push_back(static_cast<int64_t>(field.value));
        return;
    }
    // Packed: read as a message of nothing but values would fail on keys, so the varints are walked here.
    const uint8_t *at = field.bytes.begin;
    while (at != field.bytes.end) {
        uint64_t value = 0;
        int shift = 0;
        uint8_t byte = 0;
        do {
            if (at == field.bytes.end || shift > 63) throw Failure("a number in the graph has no end");
            byte = *at++;
            value |= static_cast<uint64_t>(byte & 0x7f) << shift;
            shift += 7;
        } while (byte >= 0x80);
        numbers.push_back(static_cast<int64_t>(value));
    }
}

template <typename T>
void append_raw(std::vector<int64_t> &numbers, Span raw) {
    for (const uint8_t *at = raw.begin; at + sizeof(T) <= raw.end; at += sizeof(T)) {
        T value;
        std::memcpy(&value, at, sizeof value);
        numbers.push_back(static_cast<int64_t>(value));
    }
}

void read_constant(Span span, Graph &graph) {
    Constant constant;
    std::string name;
    uint64_t kind = 0;
    Span raw{nullptr, nullptr};
    Reader reader(span);
    for (Field field; reader.next(field);) {
        switch (field.number) {
            case 1: append(constant.shape, field); break;
            case 2: kind = field.value; break;
            case 5:
            case 7: append(constant.integers, field); break;
            case 8: name = field.bytes.text(); break;
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
    graph.constants[name] = std::move(constant);
}

Node read_node(Span span) {
    Node node;
    Reader reader(span);
    for (Field field; reader.next(field);) {
        switch (field.number) {
            case 1: node.inputs.push_back(field.bytes.text()); break;
            case 2: node.outputs.push_back(field.bytes.text()); break;
            case 3: node.name = field.bytes.text(); break;
            case 4: node.operation = field.bytes.text(); break;
            case 5: {
                std::string name;
                std::vector<int64_t> numbers;
                Reader inner(field.bytes);
                for (Field part; inner.next(part);) {
                    if (part.number == 1) name = part.bytes.text();
                    if (part.number == 3 || part.number == 8) append(numbers, part);
                }
                node.attributes[name] = std::move(numbers);
                break;
            }
            default: break;
        }
    }
    if (node.outputs.empty()) throw Failure("an operator of the graph has no output");
    return node;
}

std::string read_value_name(Span span) {
    Reader reader(span);
    for (Field field; reader.next(field);) {
        if (field.number == 1) return field.bytes.text();
    }
    return "";
}

Graph read_body(Span span) {
    Graph graph;
    Reader reader(span);
    for (Field field; reader.next(field);) {
        if (field.wire != bytes_wire) continue;
        switch (field.number) {
            case 1: graph.nodes.push_back(read_node(field.bytes)); break;
            case 5: read_constant(field.bytes, graph); break;
            case 11: graph.input = read_value_name(field.bytes); break;
            case 12: graph.output = read_value_name(field.bytes); break;
            default: break;
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

Graph read_graph(const uint8_t *data, size_t size) {
    Reader reader({data, data + size});
    for (Field field; reader.next(field);) {
        if (field.number == 7 && field.wire == bytes_wire) return read_body(field.bytes);
    }
    throw Failure("the file holds no graph");
}

}  // namespace emq
