#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "dispatch.h"
#include "emq.h"
#include "failure.h"
#include "opened.h"
#include "tuning.h"
#include "utf8.h"

namespace {

thread_local std::string last_error;

// Runs a call; whatever goes wrong becomes a sentence.
template <typename Call>
int guarded(Call &&call) {
    try {
        call();
        return 0;
    } catch (const std::bad_alloc &) {
        last_error = "there is not enough memory; give back another network or take a smaller one";
    } catch (const std::system_error &error) {
        last_error = std::string("the system refused (") + error.what() + "); ask for fewer threads";
    } catch (const std::exception &error) {
        last_error = emq::printable(error.what());
    }
    return -1;
}

// What a call finds out, or what stands for nothing.
template <typename Answer, typename Call>
Answer asked(Answer nothing, Call &&call) {
    Answer answer = nothing;
    return guarded([&] { answer = call(); }) == 0 ? answer : nothing;
}

void require(bool given, const char *sentence) {
    if (!given) throw emq::Failure(sentence);
}

const char *named(const std::vector<std::string> &names, int32_t index) {
    require(index >= 0 && static_cast<size_t>(index) < names.size(), "there is no such index; ask for the count first");
    return names[static_cast<size_t>(index)].c_str();
}

int open_as(emq_network **network, const std::function<std::shared_ptr<emq::Opened>()> &open) {
    return guarded([&] {
        require(network != nullptr, "an open network needs a place for its handle");
        *network = nullptr;
        *network = emq::handle_of(open());
    });
}

}  // namespace

extern "C" {

int32_t emq_version(void) { return EMQ_VERSION; }

const char *emq_error(void) { return last_error.c_str(); }

const char *emq_instruction_sets(void) {
    static const std::string names = [] {
        std::string joined;
        for (const emq::Kernels *kernels : emq::available_kernels()) {
            joined += joined.empty() ? "" : " ";
            joined += kernels->name;
        }
        return joined;
    }();
    return names.c_str();
}

int emq_forget_tuning(void) {
    return guarded([] {
        require(emq::forget_tuning(), "a file of the user's cache cannot be removed; change its permissions");
    });
}

int emq_open(const char *path, int32_t threads, emq_network **network) {
    return open_as(network, [&] {
        require(path != nullptr, "a network needs a path");
        return emq::Opened::from_file(path, threads);
    });
}

int emq_open_bytes(const void *bytes, size_t size, int32_t threads, emq_network **network) {
    return open_as(network, [&] {
        require(bytes != nullptr, "a network needs bytes");
        return emq::Opened::from_bytes("the file in memory", {static_cast<const uint8_t *>(bytes), size}, threads);
    });
}

int emq_create(const emq_source *source, emq_network **network) {
    return open_as(network, [&] {
        require(source != nullptr && source->graph != nullptr && source->layers != nullptr &&
                    source->sites != nullptr && source->child_names != nullptr && source->child_count >= 1 &&
                    source->classes >= 1,
                "the network lacks its graph, layers, tensors, children or classes");
        return emq::Opened::from_source(*source);
    });
}

void emq_close(emq_network *network) { emq::forget(network); }

int emq_input(const emq_network *network, emq_pixels *pixels) {
    return guarded([&] {
        require(pixels != nullptr, "the description of an input needs a place");
        const emq::Card &card = emq::find(network)->card();
        const bool known = !card.mean.empty();
        *pixels = {card.channels, card.height, card.width, known ? card.mean.data() : nullptr,
                   known ? card.deviation.data() : nullptr};
    });
}

int32_t emq_class_count(const emq_network *network) {
    return asked(0, [&] { return static_cast<int32_t>(emq::find(network)->card().classes.size()); });
}

const char *emq_class_name(const emq_network *network, int32_t index) {
    return asked<const char *>(nullptr, [&] { return named(emq::find(network)->card().classes, index); });
}

int32_t emq_child_count(const emq_network *network) {
    return asked(0, [&] { return static_cast<int32_t>(emq::find(network)->network().children().size()); });
}

const char *emq_child_name(const emq_network *network, int32_t child) {
    return asked<const char *>(nullptr, [&] { return named(emq::find(network)->network().children(), child); });
}

int32_t emq_find_child(const emq_network *network, const char *name) {
    return asked(-1, [&] {
        require(name != nullptr, "a child needs a name");
        return emq::find(network)->network().child(name);
    });
}

size_t emq_size_bytes(const emq_network *network) {
    return asked<size_t>(0, [&] { return emq::find(network)->network().bytes(); });
}

const char *emq_layer_method(const emq_network *network, int32_t child, const char *layer) {
    return asked<const char *>(nullptr, [&]() -> const char * {
        const auto opened = emq::find(network);
        const emq::Layer *found = layer == nullptr ? nullptr : opened->network().find(layer);
        require(found != nullptr, "there is no such layer");
        return found->method(opened->index(child));
    });
}

int emq_use(emq_network *network, int32_t child) {
    return guarded([&] { emq::find(network)->use(child); });
}

int32_t emq_used(const emq_network *network) {
    return asked(-1, [&] { return emq::find(network)->used(); });
}

int emq_run(emq_network *network, int32_t child, const float *images, int64_t count, float *logits) {
    return guarded([&] {
        require(images != nullptr && logits != nullptr && count >= 1,
                "a request needs images, at least one, and a place for the logits");
        const auto opened = emq::find(network);
        opened->network().run(opened->index(child), images, count, logits, nullptr, nullptr);
    });
}

int emq_run_pixels(emq_network *network, int32_t child, const uint8_t *images, int64_t count, float *logits) {
    return guarded([&] {
        require(images != nullptr && logits != nullptr && count >= 1,
                "a request needs images, at least one, and a place for the logits");
        emq::find(network)->run_pixels(child, images, count, logits);
    });
}

int emq_classify(emq_network *network, int32_t child, const uint8_t *image, int32_t *best, double *probability) {
    return guarded([&] {
        require(image != nullptr && best != nullptr && probability != nullptr,
                "a classification needs an image, and places for the class and its probability");
        const auto opened = emq::find(network);
        std::vector<float> logits(opened->card().classes.size());
        opened->run_pixels(child, image, 1, logits.data());
        const auto largest = std::max_element(logits.begin(), logits.end());
        double sum = 0;
        for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - static_cast<double>(*largest));
        *best = static_cast<int32_t>(largest - logits.begin());
        *probability = 1 / sum;
    });
}

int emq_trace(emq_network *network, int32_t child, const float *image, float *logits, emq_watch watch,
              void *context) {
    return guarded([&] {
        require(image != nullptr && logits != nullptr && watch != nullptr,
                "a trace needs an image, a place for the logits and a function to call");
        const auto opened = emq::find(network);
        opened->network().run(opened->index(child), image, 1, logits, watch, context);
    });
}
}
