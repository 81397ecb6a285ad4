#include "graph.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <set>

#include "failure.h"
#include "utf8.h"

namespace emq {
namespace {

constexpr uint64_t newest_operators = 30;
constexpr size_t most_nodes = 50000, most_names = 1024, longest_name = 1024, most_sides = 16;
constexpr int64_t largest_value = int64_t{1} << 26;  // numbers of a constant
constexpr uint64_t last_field = (1u << 29) - 1;

enum Wire { varint_wire = 0, fixed64_wire = 1, bytes_wire = 2, fixed32_wire = 5 };

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
        if (key >> 3 > last_field) throw Failure("the graph is no protobuf message");
        field = {static_cast<unsigned>(key >> 3), static_cast<Wire>(key & 7), 0, {}};
        switch (field.wire) {
            case varint_wire: field.value = varint(); return true;
            case bytes_wire: field.bytes = take(varint()); return true;
            case fixed64_wire: field.bytes = take(8); return true;
            case fixed32_wire: field.bytes = take(4); return true;
        }
        throw Failure("the graph is no protobuf message");
    }

    bool at_end() const { return at_ == end_; }

    uint64_t varint() {
        uint64_t value = 0;
        for (int shift = 0; shift < 64 && at_ != end_; shift += 7) {
            const uint8_t byte = *at_++;
            if (shift == 63 && byte > 1) break;
            value |= static_cast<uint64_t>(byte & 0x7f) << shift;
            if (byte < 0x80) return value;
        }
        throw Failure("a number in the graph has no end, or more than 64 bits");
    }

  private:
    Span take(uint64_t length) {
        if (length > static_cast<uint64_t>(end_ - at_)) throw Failure("the graph is cut off");
        const Span span{at_, static_cast<size_t>(length)};
        at_ += span.size;
        return span;
    }

    const uint8_t *at_, *end_;
};

// A graph of ours has these fields in such a message and no others.
void check_known(const Field &field, std::initializer_list<unsigned> known) {
    if (std::find(known.begin(), known.end(), field.number) == known.end()) {
        throw Failure("the graph has a field " + std::to_string(field.number) + " that no graph of ours has");
    }
}

void check_wire(const Field &field, Wire wire) {
    if (field.wire != wire) throw Failure("the graph has a field of another type than it should");
}

std::string name_in(const Field &field) {
    check_wire(field, bytes_wire);
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
    check_wire(field, bytes_wire);  // packed
    for (Reader packed(field.bytes); !packed.at_end();) numbers.push_back(static_cast<int64_t>(packed.varint()));
}

template <typename T>
void append_raw(std::vector<int64_t> &numbers, Span raw) {
    for (size_t at = 0; at + sizeof(T) <= raw.size; at += sizeof(T)) {
        T value;
        std::memcpy(&value, raw.data + at, sizeof value);
        numbers.push_back(static_cast<int64_t>(value));
    }
}

// Bits of a number of a type.
int bits_of(Element type) {
    switch (type) {
        case Element::uint2: return 2;
        case Element::uint4:
        case Element::int4: return 4;
        case Element::uint8:
        case Element::int8:
        case Element::boolean: return 8;
        case Element::uint16:
        case Element::int16:
        case Element::float16: return 16;
        case Element::float32:
        case Element::int32:
        case Element::uint32: return 32;
        case Element::int64:
        case Element::float64:
        case Element::uint64: return 64;
        default: throw Failure("the graph has a constant of a type that no graph of ours has");
    }
}

int64_t numbers_in(const std::vector<int64_t> &shape) {
    if (shape.size() > most_sides) throw Failure("the graph has a constant of too many sides");
    int64_t count = 1;
    bool empty = false;
    for (const int64_t side : shape) {
        if (side < 0) throw Failure("the graph has a constant with a side below zero");
        empty = empty || side == 0;
    }
    for (const int64_t side : shape) {
        if (!empty && side > largest_value / count) throw Failure("the graph has a constant that is too large");
        count = empty ? 0 : count * side;
    }
    return count;
}

void read_raw(Constant &constant, Span raw) {
    switch (constant.type) {
        case Element::uint8:
        case Element::boolean: return append_raw<uint8_t>(constant.integers, raw);
        case Element::int8: return append_raw<int8_t>(constant.integers, raw);
        case Element::int32: return append_raw<int32_t>(constant.integers, raw);
        case Element::int64: return append_raw<int64_t>(constant.integers, raw);
        case Element::float32:
            constant.zero = raw.size == sizeof(float) && std::count(raw.data, raw.data + raw.size, 0) == sizeof(float);
            return;
        default: return;
    }
}

// A constant that is not open holds as much as its shape says, in one place.
void check_full(const Constant &constant, bool is_raw, Span raw, uint64_t others) {
    const uint64_t count = static_cast<uint64_t>(numbers_in(constant.shape));
    const uint64_t bits = static_cast<uint64_t>(bits_of(constant.type)), given = constant.integers.size();
    if (constant.open) return;
    const bool full = is_raw ? given + others == 0 && raw.size == (count * bits + 7) / 8
                             : given == count || others >= 4 * count || (others > 0 && bits == 32);
    if (!full) throw Failure("the graph has a constant that does not hold what its shape says");
}

void read_constant(Span span, Graph &graph) {
    Constant constant;
    std::string name;
    bool is_raw = false;
    uint64_t others = 0;  // bytes of numbers in other fields than whole ones have
    Span raw{};
    Reader reader(span);
    for (Field field; reader.next(field);) {
        check_known(field, {1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14});
        switch (field.number) {
            case 1: append(constant.shape, field); break;
            case 2: constant.type = static_cast<Element>(std::min<uint64_t>(field.value, INT32_MAX)); break;
            case 5:
            case 7: append(constant.integers, field); break;
            case 8: name = name_in(field); break;
            case 9:
                check_wire(field, bytes_wire);
                is_raw = true;
                raw = field.bytes;
                break;
            case 4:
            case 10:
            case 11: others += field.wire == bytes_wire ? field.bytes.size : 8; break;
            case 14: constant.open = field.value == 1; break;
            default: break;
        }
    }
    check_full(constant, is_raw, raw, others);
    read_raw(constant, raw);
    if (name.empty() || !graph.constants.emplace(name, std::move(constant)).second) {
        throw Failure("the graph has constant " + name + " twice, or without a name");
    }
}

// One number, one list of them or one text; of any other value nothing is kept, and no operator here takes it.
void read_attribute(Span span, Node &node) {
    std::string name;
    std::vector<int64_t> numbers;
    unsigned given = 0;
    Reader reader(span);
    for (Field field; reader.next(field);) {
        check_known(field, {1, 2, 3, 4, 5, 7, 8, 9, 13, 20});  // no graph
        if (field.number == 1) name = name_in(field);
        if (field.number != 3 && field.number != 4 && field.number != 8) continue;
        if (given != 0 && (given != 8 || field.number != 8)) throw Failure("an attribute of the graph has two values");
        given = field.number;
        if (given == 4) {
            check_wire(field, bytes_wire);
            // A text is how ONNX writes that padding is not given as numbers, or (NOTSET) that it is, and what it holds.
            const std::string text = field.bytes.text();
            numbers = {text == "NOTSET" || text == "constant" ? 0 : 1};
            continue;
        }
        if (given == 3) check_wire(field, varint_wire);
        append(numbers, field);
    }
    if (numbers.size() > most_names) throw Failure("attribute " + name + " of the graph has too many numbers");
    static const std::set<std::string> lists = {"kernel_shape", "pads", "strides", "dilations", "perm"},
                                       numbers_alone = {"axis", "group", "transB", "allowzero",
                                                        "count_include_pad"};
    if ((given == 8 && numbers_alone.count(name) != 0) || (given == 3 && lists.count(name) != 0)) {
        throw Failure("attribute " + name + " of the graph has another type");
    }
    node.attributes[name] = std::move(numbers);
}

Node read_node(Span span) {
    Node node;
    std::string domain;
    Reader reader(span);
    for (Field field; reader.next(field);) {
        check_known(field, {1, 2, 3, 4, 5, 6, 7, 9});
        switch (field.number) {
            case 1: node.inputs.push_back(name_in(field)); break;
            case 2: node.outputs.push_back(name_in(field)); break;
            case 3: node.name = name_in(field); break;
            case 4: node.operation = name_in(field); break;
            case 5:
                check_wire(field, bytes_wire);
                read_attribute(field.bytes, node);
                break;
            case 7: domain = name_in(field); break;
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

// Visits the fields of a message.
void inside(const Field &message, const std::function<void(const Field &)> &each) {
    check_wire(message, bytes_wire);
    Reader reader(message.bytes);
    for (Field field; reader.next(field);) each(field);
}

// The sides of a tensor's type, -1 for one that is free.
std::vector<int64_t> read_sides(const Field &shape) {
    std::vector<int64_t> sides;
    inside(shape, [&](const Field &side) {
        sides.push_back(-1);
        inside(side, [&](const Field &value) {
            if (value.number != 1) return;
            check_wire(value, varint_wire);
            if (sides.back() != -1) throw Failure("the graph gives a side twice");
            sides.back() = static_cast<int64_t>(value.value);
        });
    });
    return sides;
}

Value read_value(Span span) {
    Value value;
    const auto type = [&](const Field &part) {
        if (part.number == 1) value.type = static_cast<Element>(std::min<uint64_t>(part.value, INT32_MAX));
        if (part.number != 2) return;
        if (!value.shape.empty()) throw Failure("the graph gives a shape twice");
        value.shape = read_sides(part);
    };
    Reader reader(span);
    for (Field field; reader.next(field);) {
        if (field.number == 1) value.name = name_in(field);
        if (field.number != 2) continue;
        value.type = Element::none;
        value.shape.clear();
        inside(field, [&](const Field &kind) {
            if (kind.number != 1) throw Failure("the graph takes or gives something that is no tensor");
            inside(kind, type);
        });
    }
    value.codes = value.type == Element::uint8;
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
        check_known(field, {1, 2, 5, 10, 11, 12, 13, 16});
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
        check_known(field, {1, 2, 3, 4, 5, 6, 7, 8, 14});  // no functions and no training
        if (field.number == 7 && field.wire == bytes_wire) graphs.push_back(read_body(field.bytes));
        if (field.number == 8 && field.wire == bytes_wire) check_operators(field.bytes);
    }
    if (graphs.size() != 1) throw Failure("the file holds other than one graph");
    return std::move(graphs.front());
}

}  // namespace emq
