#include "card.h"

#include <algorithm>
#include <functional>

#include "failure.h"

namespace emq {
namespace {

constexpr int64_t largest_count = int64_t{1} << 58;
constexpr size_t most_classes = 1000000;
constexpr double most_decibels = 200;

class Reader {
  public:
    Reader(Json &json, std::set<std::string> &judged) : json_(json), judged_(judged) {}

    // What only training or reports need is read and forgotten.
    Card run() {
        const auto values = [&] { json_.object([&](const std::string &) { json_.skip(); }); };
        json_.record({{"model", true, [&] { json_.name(); }},
                      {"classes", true, [&] { classes(); }},
                      {"preprocessing", true, [&] { pixels(); }},
                      {"data", true, [&] { data(); }},
                      {"task", false, [&] { json_.one_of({"classification"}); }},
                      {"accuracy", false, [&] { per_child([&] { between(0, 100); }); }},
                      {"fidelity", false, [&] { per_child([&] { fidelity(); }); }},
                      {"trained", false, [&] { trained(); }},
                      {"levels", false, [&] { card_.full_levels = json_.one_of({"half", "full"}) == 1; }},
                      {"structure", false, values},
                      {"recipe", false, values},
                      {"provenance", false, values}});
        return std::move(card_);
    }

  private:
    void classes() {
        json_.array([&] {
            card_.classes.push_back(json_.line());
            if (card_.classes.size() > most_classes) throw Failure("it has too many classes");
        });
        if (card_.classes.empty()) throw Failure("it has no classes");
    }

    int side() { return static_cast<int>(json_.whole(1, largest_side)); }

    // How a picture comes to the size of the input is the business of whoever reads it.
    void pixels() {
        const auto fixed = [&](const char *text) { return [=] { json_.one_of({text}); }; };
        bool resize = false;
        std::vector<int> resized;
        size_t order = 0;
        json_.record({{"channels", true, [&] { card_.channels = side(); }},
                      {"height", true, [&] { card_.height = side(); }},
                      {"width", true, [&] { card_.width = side(); }},
                      {"mean", true, [&] { card_.mean = read_numbers(json_, false); }},
                      {"std", true, [&] { card_.deviation = read_numbers(json_, true); }},
                      {"channel_order", false, unless_null([&] { order = 1 + json_.one_of({"rgb", "bgr", "grey"}); })},
                      {"resize", false, unless_null([&] { resize = json_.one_of({"cover", "stretch"}) < 2; })},
                      {"resized", false, unless_null([&] { json_.array([&] { resized.push_back(side()); }); })},
                      {"interpolation", false,
                       [&] { json_.one_of({"nearest", "box", "bilinear", "bicubic", "lanczos"}); }},
                      {"antialias", false, [&] { require(json_.truth()); }},
                      {"crop", false, fixed("center")},
                      {"value_range", false, [&] { value_range(); }},
                      {"layout", false, fixed("NCHW")},
                      {"dtype", false, fixed("float32")}});
        const size_t channels = static_cast<size_t>(card_.channels);
        if (card_.mean.size() != channels || card_.deviation.size() != channels) {
            throw Failure("preprocessing needs one mean and one std per channel");
        }
        card_.bgr = order == 2;
        require(order == 0 || (order == 3) == (channels == 1));
        require(resized.empty() || resized.size() == 2);
        require(resized.empty() || !resize || (resized[0] >= card_.height && resized[1] >= card_.width));
    }

    static void require(bool fits) {
        if (!fits) throw Failure("its preprocessing is none that there is");
    }

    void value_range() {
        int64_t next = 0;
        json_.array([&] {
            require(next < 2);
            json_.whole(next, next);
            next++;
        });
        require(next == 2);
    }

    void data() {
        json_.record({{"name", true, [&] { json_.line(); }},
                      {"image_size", false, unless_null([&] { side(); })},
                      {"labelled", false, [&] { json_.truth(); }}});
    }

    std::function<void()> unless_null(const std::function<void()> &read) {
        return [=] {
            if (!json_.is_null()) read();
        };
    }

    void per_child(const std::function<void()> &value) {
        json_.object([&](const std::string &child) {
            judged_.insert(child);
            value();
        });
    }

    void fidelity() {
        const auto count = [&] { json_.whole(0, largest_count); };
        json_.record({{"against", true, [&] { json_.line(); }},
                      {"snr_db", true, [&] { between(-most_decibels, most_decibels); }},
                      {"agreement", true, [&] { between(0, 100); }},
                      {"decided", true, count},
                      {"images", true, count}});
    }

    void trained() {
        size_t count = 0;
        json_.array([&] {
            judged_.insert(json_.name());
            if (++count > most_children) throw Failure("it was trained at too many children");
        });
    }

    void between(double least, double most) {
        const double value = json_.number();
        if (!(value >= least && value <= most)) throw Failure("it has a number out of bounds");
    }

    Json &json_;
    std::set<std::string> &judged_;
    Card card_;
};

}  // namespace

Card read_card(Json &json, std::set<std::string> &judged) { return Reader(json, judged).run(); }

std::vector<float> read_numbers(Json &json, bool positive) {
    std::vector<float> found;
    json.array([&] {
        const double value = json.number();
        const bool fits = value <= largest_number && value >= (positive ? 0 : -largest_number);
        found.push_back(static_cast<float>(fits ? value : 0));
        if (!fits || (positive && !(found.back() > 0))) throw Failure("it has a number out of bounds");
    });
    return found;
}

}  // namespace emq
