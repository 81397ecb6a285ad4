#include "checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "failure.h"
#include "graph.h"
#include "inflate.h"

namespace emq {
namespace {

constexpr int64_t first_format = 3, table_format = 4;
constexpr int master_bits = 8;
constexpr size_t layer_start = 64;  // bytes of a plane: every layer begins at a multiple
constexpr int byte_offset = 128;  // makes codes of 8 bits of int8 weights
constexpr size_t largest_graph = 256u << 20;
constexpr float most_steps = 2147483648.0f;  // of a bias
constexpr const char *floats = "float/";     // how the names of parameters that stay in float begin

Span span_of(const std::string &text) { return {reinterpret_cast<const uint8_t *>(text.data()), text.size()}; }

size_t plane_bytes(const LayerRecord &layer) {
    const size_t weights = static_cast<size_t>(layer.weights()), codes = 8 * layer_start;
    return (weights + codes - 1) / codes * layer_start;
}

// Eight codes from a byte of each plane, the most significant plane first: a matrix of 8 x 8 bits is turned over.
uint64_t turned(uint64_t bits) {
    uint64_t swap = (bits ^ bits >> 7) & 0x00aa00aa00aa00aa;
    bits ^= swap ^ swap << 7;
    swap = (bits ^ bits >> 14) & 0x0000cccc0000cccc;
    bits ^= swap ^ swap << 14;
    swap = (bits ^ bits >> 28) & 0x00000000f0f0f0f0;
    return bits ^ swap ^ swap << 28;
}

template <typename T>
T at(Span tensor, size_t index) {
    T value;
    std::memcpy(&value, tensor.data + index * sizeof value, sizeof value);
    return value;
}

}  // namespace

Checkpoint::Checkpoint(const std::string &name, Span bytes) : file_(name, bytes) {
    read_header();
    check_tensors();
    for (const LayerRecord &layer : header_.layers) layers_.push_back({&layer, {}, {}});
    read_codes();
    for (size_t child = 0; child < header_.children.size(); child++) read_child(child);
    for (const SiteRecord &site : header_.sites) sites_.push_back(bounds_of(site, header_.card.full_levels));
    const Span packed = file_.tensor("skeleton");
    file_.held_to([&] {
        graph_ = inflate(packed, largest_graph);
        check_graph();
    });
}

void Checkpoint::read_header() {
    int64_t version = 0;
    try {
        version = read_version(span_of(file_.header()));
    } catch (const Failure &) {
        file_.fail("is not an .emq file");
    }
    if (version < first_format || version > table_format) {
        file_.fail("has format " + std::to_string(version) + ", this library reads " + std::to_string(first_format) +
                       " and " + std::to_string(table_format),
                   version > table_format ? "update emqdeploy-native" : "train or quantize the network again");
    }
    file_.held_to([&] {
        header_ = emq::read_header(span_of(file_.header()));
        if (version < table_format && !header_.table_widths().empty()) {
            throw Failure("it has tables, which came with format " + std::to_string(table_format));
        }
    });
    file_.digests = header_.digests;
}

// The file holds the tensors that follow from its layers, and no others.
void Checkpoint::check_tensors() {
    int64_t every = 0, table = 0, plane = 0, pinned = 0, tabled = 0;
    for (const LayerRecord &layer : header_.layers) {
        every += layer.outputs();
        if (!layer.switchable()) {
            pinned += layer.weights();
            continue;
        }
        table += layer.outputs();
        if (layer.kind == GridKind::table) tabled += layer.outputs();
        plane += static_cast<int64_t>(plane_bytes(layer));
    }
    std::vector<std::string> expected;
    const auto expect = [&](const std::string &tensor, Type type, int64_t count) {
        file_.check(tensor, type, count);
        expected.push_back(tensor);
    };
    expect("skeleton", Type::uint8, -1);
    expect("pinned", Type::int8, pinned);
    widths_ = header_.widths();
    for (int index = 0; index < planes(); index++) expect("plane" + std::to_string(index), Type::uint8, plane);
    for (const int width : widths_) {
        for (const char *kind : {"slope/", "offset/", "bits/"}) expect(kind + std::to_string(width), Type::int8, table);
    }
    for (const int width : header_.table_widths()) expect("table/" + std::to_string(width), Type::int8, tabled << width);
    for (const ChildRecord &child : header_.children) {
        expect("scale/" + child.name, Type::float32, every);
        expect("bias/" + child.name, Type::float32, every);
        expect("sign/" + child.name, Type::int8, every);
    }
    for (const auto &digest : header_.digests) {
        if (digest.first.rfind(floats, 0) != 0) continue;
        expect(digest.first, Type::float32, -1);
        file_.tensor(digest.first);  // matches its digest, though nothing here computes in floats
    }
    if (expected.size() != file_.tensors()) file_.fail("is damaged: it has tensors that are not expected");
}

// The graph takes floats, and what it leaves open has the type and shape of what the file fills it with.
void Checkpoint::check_graph() const {
    using Sides = std::vector<int64_t>;
    std::map<std::string, std::pair<Element, Sides>> filled;
    for (const LayerRecord &layer : header_.layers) {
        const Sides channels{layer.outputs()};
        filled[layer.name + ".weight"] = {Element::int8, layer.shape};
        filled[layer.name + ".bias"] = {Element::int32, channels};
        for (const char *of : {".weight_scale", ".bias_scale"}) filled[layer.name + of] = {Element::float32, channels};
    }
    for (const SiteRecord &site : header_.sites) {
        filled[site.name + ".scale"] = {Element::float32, {}};
        if (!site.clamped) continue;
        for (const char *of : {".low", ".high"}) filled[site.name + of] = {Element::uint8, {}};
    }
    for (const auto &digest : header_.digests) {
        if (digest.first.rfind(floats, 0) != 0) continue;
        filled[digest.first.substr(std::strlen(floats))] = {Element::float32, file_.shape(digest.first)};
    }
    const Graph graph = read_graph({graph_.data(), graph_.size()});
    for (const Value &input : graph.inputs) {
        if (input.type != Element::float32) throw Failure("the graph takes " + input.name + " as other than floats");
    }
    for (const auto &[name, constant] : graph.constants) {
        if (!constant.open) continue;
        const auto found = filled.find(name);
        if (found == filled.end() || found->second != std::make_pair(constant.type, constant.shape)) {
            throw Failure("the graph leaves " + name + " open in a type or shape that the file does not have");
        }
    }
}

int Checkpoint::planes() const { return widths_.empty() ? 1 : widths_.back(); }

// Also where no layer looks anything up: a row of a layer that has another width.
void Checkpoint::check_tables() const {
    for (const int bits : header_.table_widths()) {
        const Span tables = file_.tensor("table/" + std::to_string(bits));
        for (size_t i = 0; i < tables.size; i++) {
            const int8_t number = at<int8_t>(tables, i);
            if (number == INT8_MIN || ((i & ((size_t{1} << bits) - 1)) != 0 && number < at<int8_t>(tables, i - 1))) {
                file_.fail("is damaged: a table of " + std::to_string(bits) + " bits does not ascend from -127 at least");
            }
        }
    }
}

void Checkpoint::read_codes() {
    check_tables();
    std::vector<Span> all;
    for (int index = 0; index < planes(); index++) all.push_back(file_.tensor("plane" + std::to_string(index)));
    const Span pinned = file_.tensor("pinned");
    size_t plane_at = 0, pinned_at = 0, tabled_at = 0;
    for (Layer &layer : layers_) {
        const size_t weights = static_cast<size_t>(layer.record->weights());
        layer.codes.resize((weights + 7) / 8 * 8);
        if (!layer.record->switchable()) {
            for (size_t i = 0; i < weights; i++) layer.codes[i] = pinned.data[pinned_at + i] ^ byte_offset;
            pinned_at += weights;
            continue;
        }
        for (size_t byte = 0; byte < layer.codes.size() / 8; byte++) {
            uint64_t bits = 0;
            for (size_t plane = 0; plane < all.size(); plane++) {
                bits |= static_cast<uint64_t>(all[plane].data[plane_at + byte]) << (56 - 8 * plane);
            }
            bits = turned(bits);
            std::memcpy(&layer.codes[8 * byte], &bits, sizeof bits);
        }
        plane_at += plane_bytes(*layer.record);
        if (layer.record->kind == GridKind::table) tabled_at += look_up(layer, tabled_at);
    }
}

// Puts what the codes of a layer stand for in their place, as bytes, whichever child uses them; returns its channels.
size_t Checkpoint::look_up(Layer &layer, size_t first) const {
    const int bits = header_.children[0].weights.of(layer.record->name);
    const size_t outputs = static_cast<size_t>(layer.record->outputs()), numbers = size_t{1} << bits;
    const size_t row = static_cast<size_t>(layer.record->weights()) / outputs;
    const Span tables = file_.tensor("table/" + std::to_string(bits));
    for (size_t n = 0; n < outputs; n++) {
        const uint8_t *table = tables.data + (first + n) * numbers;
        for (size_t i = n * row; i < (n + 1) * row; i++) {
            layer.codes[i] = table[layer.codes[i] >> (master_bits - bits)] ^ byte_offset;
        }
    }
    return outputs;
}

// The tables of a weight width, which its children share.
const Checkpoint::Shared &Checkpoint::shared(int width) {
    const auto found = shared_.find(width);
    if (found != shared_.end()) return found->second;
    const std::string ending = std::to_string(width);
    const Shared read = {file_.tensor("slope/" + ending), file_.tensor("offset/" + ending),
                         file_.tensor("bits/" + ending)};
    for (size_t i = 0; i < read.bits.size; i++) {
        const int8_t bits = at<int8_t>(read.bits, i);
        if (bits < 0 || bits > width) file_.fail("is damaged: the grid of " + ending + " bits uses other ones");
    }
    return shared_[width] = read;
}

void Checkpoint::read_child(size_t index) {
    const ChildRecord &child = header_.children[index];
    const Own own = {file_.tensor("scale/" + child.name), file_.tensor("bias/" + child.name),
                     file_.tensor("sign/" + child.name)};
    size_t channel = 0, shared_channel = 0;
    for (Layer &layer : layers_) {
        const float input_scale = header_.sites[layer.record->site_index].scales[index];
        const size_t outputs = static_cast<size_t>(layer.record->outputs());
        Numbers numbers;
        for (size_t n = 0; n < outputs; n++) add_channel(child, *layer.record, own, channel++, input_scale, numbers);
        if (layer.record->switchable()) {
            const int width = child.weights.of(layer.record->name);
            const Shared &grid = shared(width);
            for (size_t n = 0; n < outputs; n++, shared_channel++) {
                if (layer.record->kind == GridKind::table && at<int8_t>(grid.bits, shared_channel) != width) {
                    file_.fail("is damaged: layer '" + layer.record->name +
                               "' looks its codes up by other bits than those of its width");
                }
                grid_of(grid, shared_channel, layer.record->kind, numbers, n);
            }
        }
        layer.children.push_back(std::move(numbers));
    }
}

// What belongs to a child; of a pinned layer that is all, its integers are bytes less 128, turned by the sign.
void Checkpoint::add_channel(const ChildRecord &child, const LayerRecord &layer, const Own &own, size_t channel,
                             float input_scale, Numbers &numbers) const {
    const float scale = at<float>(own.scale, channel), bias = at<float>(own.bias, channel);
    const int32_t sign = at<int8_t>(own.sign, channel);
    if (!(std::isfinite(scale) && scale > 0 && std::isfinite(bias))) {
        file_.fail("is damaged: child '" + child.name + "' has a scale or bias that is no number for a kernel");
    }
    if (sign != 1 && sign != -1) {
        file_.fail("is damaged: child '" + child.name + "' has a sign that is neither 1 nor -1");
    }
    const float step = input_scale * scale;
    const bool fits = std::fabs(bias) / most_steps < step;
    const double steps = fits ? std::nearbyint(static_cast<double>(bias) / static_cast<double>(step)) : 0;
    if (!fits || std::fabs(steps) > INT32_MAX) {
        file_.fail("is damaged: a bias of layer '" + layer.name + "' at child '" + child.name + "' is no int32");
    }
    numbers.gain.push_back(sign);
    numbers.shift.push_back(-byte_offset * sign);
    numbers.bias.push_back(static_cast<int32_t>(steps));
    numbers.bits.push_back(master_bits);
    numbers.scale.push_back(scale);
}

// z = gain * code + shift, from z = slope * u + offset and what a code stands for; of a table that is a byte less 128.
void Checkpoint::grid_of(const Shared &grid, size_t channel, GridKind kind, Numbers &numbers, size_t n) {
    const int32_t sign = numbers.gain[n], slope = at<int8_t>(grid.slope, channel) * sign;
    const int32_t offset = at<int8_t>(grid.offset, channel) * sign;
    if (kind == GridKind::table) {
        numbers.gain[n] = slope;
        numbers.shift[n] = offset - byte_offset * slope;
        return;
    }
    const int bits = at<int8_t>(grid.bits, channel), steps = 1 << bits;
    numbers.gain[n] = kind == GridKind::odd ? 2 * slope : slope;
    numbers.shift[n] = offset - slope * (kind == GridKind::odd ? steps - 1 : steps >> 1);
    numbers.bits[n] = static_cast<uint8_t>(bits);
}

Checkpoint::Bounds Checkpoint::bounds_of(const SiteRecord &site, bool full_levels) {
    Bounds bounds;
    for (const int bits : site.bits) {
        const int half = 1 << (bits - 1), steps = 2 * half - 1, most = full_levels ? 255 : 127;
        int low = site.is_signed ? 128 - half : 0;
        int high = site.is_signed ? 127 + half : std::min(steps, most);
        if (site.zero_point >= 0) {
            low = site.zero_point - (site.zero_point * steps + 127) / 255;
            high = low + steps;
        }
        bounds.lows.push_back(site.clamped ? low : 0);
        bounds.highs.push_back(site.clamped ? high : 255);
    }
    return bounds;
}

std::unique_ptr<Network> Checkpoint::network(int threads, const Kernels &kernels) const {
    std::vector<const char *> names;
    for (const ChildRecord &child : header_.children) names.push_back(child.name.c_str());
    std::vector<std::vector<emq_layer_numbers>> numbers;
    std::vector<emq_layer> layers;
    for (const Layer &layer : layers_) {
        std::vector<emq_layer_numbers> &given = numbers.emplace_back();
        for (const Numbers &one : layer.children) {
            given.push_back({one.gain.data(), one.shift.data(), one.bias.data(), one.bits.data(), one.scale.data()});
        }
        const int64_t outputs = layer.record->outputs();
        layers.push_back({layer.record->name.c_str(), outputs, layer.record->weights() / outputs, layer.codes.data(),
                          given.data()});
    }
    std::vector<emq_site> sites;
    for (size_t i = 0; i < sites_.size(); i++) {
        const SiteRecord &site = header_.sites[i];
        sites.push_back({site.name.c_str(), site.scales.data(), sites_[i].lows.data(), sites_[i].highs.data()});
    }
    const Card &card = header_.card;
    const auto count = [](const auto &of) { return static_cast<int32_t>(of.size()); };
    const emq_source source = {graph_.data(), graph_.size(),       card.channels, card.height,  card.width,
                               count(card.classes), count(names),  count(layers), count(sites), names.data(),
                               layers.data(),       sites.data(),  threads};
    return std::make_unique<Network>(source, kernels);
}

}  // namespace emq
