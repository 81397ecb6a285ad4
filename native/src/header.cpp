#include "header.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "failure.h"
#include "json.h"

namespace emq {
namespace {

constexpr int64_t largest_layer = int64_t{1} << 40;
constexpr size_t most_records = 1 << 16, shortest_digest = 32, longest_digest = 64;
constexpr int master_bits = 8, least_activation_bits = 2, highest_zero = 192, widest_table = 4;

bool is_digit(char letter) { return letter >= '0' && letter <= '9'; }

std::string in_small_letters(std::string name) {
    for (char &letter : name) letter = static_cast<char>(letter >= 'A' && letter <= 'Z' ? letter | 0x20 : letter);
    return name;
}

// The number at a place of a name, which moves behind it; -1 where there is none.
int number_at(const std::string &name, size_t &at) {
    int number = -1;
    for (; at < name.size() && is_digit(name[at]); at++) {
        number = std::min(1000, 10 * std::max(number, 0) + (name[at] - '0'));
    }
    return number;
}

// Whether people would read a name in small letters (4, w4a8, 2-8a4) as other widths than the child has.
bool misleads(const std::string &name, const ChildRecord &child) {
    size_t at = name[0] == 'w' ? 1 : 0;
    const int weights = number_at(name, at);
    if (weights < 0) return name == "float";
    int last = weights, activations = master_bits;
    const bool range = at < name.size() && name[at] == '-';
    if (range) last = number_at(name, ++at);
    if (at < name.size() && name[at] == 'a') activations = number_at(name, ++at);
    if (at != name.size() || last < 0 || activations < 0) return false;
    const auto all = [](const Widths &widths, int bits) { return widths.layers.empty() && widths.rest == bits; };
    return range || !all(child.weights, weights) || !all(child.activations, activations);
}

class Reader {
  public:
    explicit Reader(Span text) : json_(text) {}

    Header run() {
        std::set<std::string> judged;
        json_.record({{"format_version", true, [&] { json_.skip(); }},
                      {"card", true, [&] { header_.card = read_card(json_, judged); }},
                      {"children", true, [&] { children(); }},
                      {"layers", true, [&] { layers(); }},
                      {"sites", true, [&] { sites(); }},
                      {"hashes", true, [&] { digests(); }}});
        json_.end();
        for (const ChildRecord &child : header_.children) judged.erase(child.name);
        if (!judged.empty()) throw Failure("it judges child '" + *judged.begin() + "', which it does not have");
        return std::move(header_);
    }

  private:
    void children() {
        std::set<std::string> names;
        json_.array([&] {
            ChildRecord child;
            json_.record({{"name", true, [&] { child.name = json_.name(); }},
                          {"weights", true, [&] { child.weights = widths(1); }},
                          {"activations", true, [&] { child.activations = widths(least_activation_bits); }}});
            const std::string name = in_small_letters(child.name);
            const auto allowed = [](char letter) {
                return is_digit(letter) || (letter >= 'a' && letter <= 'z') || std::strchr("_.+-", letter) != nullptr;
            };
            const bool good = std::all_of(name.begin(), name.end(), allowed) && name.size() <= 64 &&
                              std::strchr(".+-", name[0]) == nullptr && child.name != "all";
            if (!good) throw Failure("'" + child.name.substr(0, 64) + "' cannot name a child");
            if (misleads(name, child)) {
                throw Failure("'" + child.name + "' reads as other widths than the child has");
            }
            if (!names.insert(name).second) throw Failure("child '" + child.name + "' is there twice");
            header_.children.push_back(std::move(child));
            if (header_.children.size() > most_children) throw Failure("it has too many children");
        });
        if (header_.children.empty()) throw Failure("it has no children");
    }

    Widths widths(int least) {
        Widths widths;
        const auto bits = [&] { return static_cast<int>(json_.whole(least, master_bits)); };
        if (!json_.is_object()) {
            widths.rest = bits();
            return widths;
        }
        json_.object([&](const std::string &layer) {
            if (layer == "*") {
                widths.rest = bits();
            } else {
                widths.layers[layer] = bits();
            }
        });
        return widths;
    }

    void layers() {
        json_.array([&] {
            LayerRecord layer;
            json_.record({{"name", true, [&] { layer.name = json_.name(); }},
                          {"shape", true, [&] { shape(layer.shape); }},
                          {"site", true, [&] { layer.site = json_.name(); }},
                          {"kind", true, [&] { layer.kind = kind(); }}});
            header_.layers.push_back(std::move(layer));
            if (header_.layers.size() > most_records) throw Failure("it has too many layers");
        });
    }

    void shape(std::vector<int64_t> &shape) {
        int64_t count = 1;
        json_.array([&] {
            shape.push_back(json_.whole(1, largest_side));
            count *= shape.back();
            if (shape.size() > 4 || count > largest_layer) throw Failure("a layer's shape is out of bounds");
        });
        if (shape.size() < 2) throw Failure("a layer's shape is out of bounds");
    }

    GridKind kind() {
        constexpr GridKind kinds[] = {GridKind::odd, GridKind::integer, GridKind::table, GridKind::pinned};
        return kinds[json_.one_of({"odd", "integer", "table", "int8"})];
    }

    void sites() {
        json_.array([&] {
            SiteRecord site;
            json_.record({{"name", true, [&] { site.name = json_.name(); }},
                          {"signed", true, [&] { site.is_signed = json_.truth(); }},
                          {"bits", true,
                           [&] {
                               json_.array([&] {
                                   const int64_t bits = json_.whole(least_activation_bits, master_bits);
                                   site.bits.push_back(static_cast<int>(bits));
                               });
                           }},
                          {"scales", true, [&] { site.scales = read_numbers(json_, true); }},
                          {"clamped", true, [&] { site.clamped = json_.truth(); }},
                          {"zero_point", false,
                           [&] { site.zero_point = static_cast<int>(json_.whole(1, highest_zero)); }}});
            header_.sites.push_back(std::move(site));
            if (header_.sites.size() > most_records) throw Failure("it has too many sites");
        });
    }

    void digests() {
        json_.object([&](const std::string &tensor) {
            const std::string digest = json_.line();
            const bool whole = digest.find_first_not_of("0123456789abcdef") == std::string::npos;
            if (!whole || digest.size() < shortest_digest || digest.size() > longest_digest) {
                throw Failure("it has a digest that is none");
            }
            header_.digests[tensor] = digest;
        });
    }

    Json json_;
    Header header_;
};

// Where each record stands, by its name.
template <typename Record>
std::map<std::string, size_t> places_of(const std::vector<Record> &records, const char *what) {
    std::map<std::string, size_t> places;
    for (const Record &record : records) {
        if (!places.emplace(record.name, places.size()).second) {
            throw Failure(std::string("a ") + what + " is there twice");
        }
    }
    return places;
}

void check_structure(Header &header) {
    const std::map<std::string, size_t> layers = places_of(header.layers, "layer"),
                                        sites = places_of(header.sites, "site");
    for (LayerRecord &layer : header.layers) {
        const auto site = sites.find(layer.site);
        if (site == sites.end()) {
            throw Failure("layer '" + layer.name + "' reads site '" + layer.site + "', which the file does not have");
        }
        layer.site_index = site->second;
    }
    for (const LayerRecord &layer : header.layers) {
        if (layer.kind != GridKind::table) continue;
        for (const ChildRecord &child : header.children) {
            const int bits = child.weights.of(layer.name);
            if (bits > widest_table || bits != header.children[0].weights.of(layer.name)) {
                throw Failure("layer '" + layer.name + "' has tables of other than one width up to 4");
            }
        }
    }
    for (const SiteRecord &site : header.sites) {
        if (site.bits.size() != header.children.size() || site.scales.size() != header.children.size()) {
            throw Failure("site '" + site.name + "' needs bits and a scale for each child");
        }
        if (site.zero_point >= 0 && !(site.is_signed && header.card.full_levels)) {
            throw Failure("site '" + site.name + "' has a zero point, which only signed ones at full levels have");
        }
    }
    for (const ChildRecord &child : header.children) {
        for (const Widths *widths : {&child.weights, &child.activations}) {
            for (const auto &[name, bits] : widths->layers) {
                const auto layer = layers.find(name);
                if (layer == layers.end()) {
                    throw Failure("child '" + child.name + "' names layer '" + name + "', which there is not");
                }
                const bool weights = widths == &child.weights;
                if (weights && bits != master_bits && !header.layers[layer->second].switchable()) {
                    throw Failure("child '" + child.name + "' narrows layer '" + name + "', which stays at 8 bits");
                }
            }
        }
    }
}

}  // namespace

int Widths::of(const std::string &layer) const {
    const auto found = layers.find(layer);
    return found == layers.end() ? rest : found->second;
}

int64_t LayerRecord::weights() const {
    int64_t count = 1;
    for (const int64_t side : shape) count *= side;
    return count;
}

std::vector<int> Header::widths() const {
    return widths_of([](const LayerRecord &layer) { return layer.switchable(); });
}

std::vector<int> Header::table_widths() const {
    return widths_of([](const LayerRecord &layer) { return layer.kind == GridKind::table; });
}

std::vector<int> Header::widths_of(const std::function<bool(const LayerRecord &)> &meant) const {
    std::set<int> found;
    for (const ChildRecord &child : children) {
        for (const LayerRecord &layer : layers) {
            if (meant(layer)) found.insert(child.weights.of(layer.name));
        }
    }
    return {found.begin(), found.end()};
}

int64_t read_version(Span text) {
    int64_t version = -1;
    Json json(text);
    json.object([&](const std::string &key) {
        if (key == "format_version") {
            version = json.whole(0, 1 << 30);
        } else {
            json.skip();
        }
    });
    json.end();
    if (version < 0) throw Failure("it has no format_version");
    return version;
}

Header read_header(Span text) {
    Header header = Reader(text).run();
    check_structure(header);
    return header;
}

}  // namespace emq
