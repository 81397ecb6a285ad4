#include "header.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <set>

#include "failure.h"
#include "json.h"

namespace emq {
namespace {

constexpr int64_t largest_side = 1 << 16, largest_layer = int64_t{1} << 40;
constexpr size_t most_children = 256, most_classes = 1000000, most_records = 1 << 16;
constexpr int master_bits = 8, least_activation_bits = 2, highest_zero = 192;
constexpr double largest_number = 1e30;

class Reader {
  public:
    explicit Reader(Span text) : json_(text) {}

    Header run() {
        json_.record({{"format_version", true, [&] { json_.skip(); }},
                      {"card", true, [&] { card(); }},
                      {"children", true, [&] { children(); }},
                      {"layers", true, [&] { layers(); }},
                      {"sites", true, [&] { sites(); }},
                      {"hashes", true, [&] { digests(); }}});
        json_.end();
        return std::move(header_);
    }

  private:
    // What only training or reports need is not looked at.
    void card() {
        const auto skip = [&] { json_.skip(); };
        json_.record({{"model", true, [&] { json_.name(); }},
                      {"classes", true, [&] { classes(); }},
                      {"preprocessing", true, [&] { pixels(); }},
                      {"data", true, skip},
                      {"task", false, [&] { task(); }},
                      {"accuracy", false, skip},
                      {"fidelity", false, skip},
                      {"trained", false, skip},
                      {"levels", false, [&] { levels(); }},
                      {"structure", false, skip},
                      {"recipe", false, skip},
                      {"provenance", false, skip}});
    }

    void task() {
        if (json_.name() != "classification") throw Failure("its task is none of: classification");
    }

    void levels() {
        const std::string levels = json_.name();
        if (levels != "half" && levels != "full") throw Failure("its levels are none of: half, full");
        header_.card.full_levels = levels == "full";
    }

    void classes() {
        std::vector<std::string> &classes = header_.card.classes;
        json_.array([&] {
            classes.push_back(json_.line());
            if (classes.size() > most_classes) throw Failure("it has too many classes");
        });
        if (classes.empty()) throw Failure("it has no classes");
    }

    void pixels() {
        Card &card = header_.card;
        const auto side = [&](int &number) {
            return [&] { number = static_cast<int>(json_.whole(1, largest_side)); };
        };
        const auto skip = [&] { json_.skip(); };  // how a picture comes to that size is its reader's business
        json_.record({{"channels", true, side(card.channels)},
                      {"height", true, side(card.height)},
                      {"width", true, side(card.width)},
                      {"mean", true, [&] { card.mean = numbers(false); }},
                      {"std", true, [&] { card.deviation = numbers(true); }},
                      {"channel_order", false, [&] { order(); }},
                      {"resize", false, skip},
                      {"resized", false, skip},
                      {"interpolation", false, skip},
                      {"antialias", false, skip},
                      {"crop", false, skip},
                      {"value_range", false, skip},
                      {"layout", false, skip},
                      {"dtype", false, skip}});
        const size_t channels = static_cast<size_t>(card.channels);
        if (card.mean.size() != channels || card.deviation.size() != channels) {
            throw Failure("preprocessing needs one mean and one std per channel");
        }
    }

    void order() {
        const std::string order = json_.name();
        if (order != "rgb" && order != "bgr" && order != "grey") {
            throw Failure("its channel order is none of: rgb, bgr, grey");
        }
        header_.card.bgr = order == "bgr";
    }

    std::vector<float> numbers(bool positive) {
        std::vector<float> found;
        json_.array([&] {
            const double value = json_.number();
            const bool fits = value <= largest_number && value >= (positive ? 0 : -largest_number);
            found.push_back(static_cast<float>(fits ? value : 0));
            if (!fits || (positive && !(found.back() > 0))) throw Failure("it has a number out of bounds");
        });
        return found;
    }

    void children() {
        std::set<std::string> names;
        json_.array([&] {
            ChildRecord child;
            json_.record({{"name", true, [&] { child.name = json_.name(); }},
                          {"weights", true, [&] { child.weights = widths(1); }},
                          {"activations", true, [&] { child.activations = widths(least_activation_bits); }}});
            const auto allowed = [](unsigned char letter) {
                return std::isalnum(letter) != 0 || std::strchr("_.+-", letter) != nullptr;
            };
            const bool good = std::all_of(child.name.begin(), child.name.end(), allowed) &&
                              std::strchr(".+-", child.name[0]) == nullptr && child.name.size() <= 64;
            if (!good) throw Failure("'" + child.name.substr(0, 64) + "' cannot name a child");
            std::string alike = child.name;
            for (char &letter : alike) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
            if (!names.insert(alike).second) throw Failure("child '" + child.name + "' is there twice");
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
                          {"kind", true, [&] { layer.kind = kind(json_.name()); }}});
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

    static GridKind kind(const std::string &name) {
        if (name == "odd") return GridKind::odd;
        if (name == "integer") return GridKind::integer;
        if (name == "int8") return GridKind::pinned;
        throw Failure("a layer's kind is none of: odd, integer, int8");
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
                          {"scales", true, [&] { site.scales = numbers(true); }},
                          {"clamped", true, [&] { site.clamped = json_.truth(); }},
                          {"zero_point", false,
                           [&] { site.zero_point = static_cast<int>(json_.whole(1, highest_zero)); }}});
            header_.sites.push_back(std::move(site));
            if (header_.sites.size() > most_records) throw Failure("it has too many sites");
        });
    }

    void digests() {
        json_.object([&](const std::string &tensor) { header_.digests[tensor] = json_.line(); });
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
    std::set<int> found;
    for (const ChildRecord &child : children) {
        for (const LayerRecord &layer : layers) {
            if (layer.switchable()) found.insert(child.weights.of(layer.name));
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
