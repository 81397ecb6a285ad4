#include <exception>
#include <new>
#include <string>

#include "dispatch.h"
#include "emq.h"
#include "failure.h"
#include "network.h"

struct emq_network {
    emq::Network network;
};

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
    } catch (const std::exception &error) {
        last_error = error.what();
    }
    return -1;
}

void require_source(const emq_source &source) {
    if (source.graph == nullptr || source.layers == nullptr || source.sites == nullptr ||
        source.child_names == nullptr || source.child_count < 1 || source.classes < 1) {
        throw emq::Failure("the network lacks its graph, layers, tensors, children or classes");
    }
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

int emq_create(const emq_source *source, emq_network **network) {
    return guarded([&] {
        if (source == nullptr || network == nullptr) throw emq::Failure("a network needs a source and a place");
        require_source(*source);
        *network = new emq_network{emq::Network(*source, emq::chosen_kernels())};
    });
}

void emq_close(emq_network *network) { delete network; }

int32_t emq_child_count(const emq_network *network) {
    return network == nullptr ? 0 : static_cast<int32_t>(network->network.children().size());
}

const char *emq_child_name(const emq_network *network, int32_t child) {
    if (child < 0 || child >= emq_child_count(network)) return nullptr;
    return network->network.children()[static_cast<size_t>(child)].c_str();
}

size_t emq_size_bytes(const emq_network *network) { return network == nullptr ? 0 : network->network.bytes(); }

const char *emq_layer_method(const emq_network *network, int32_t child, const char *layer) {
    if (child < 0 || child >= emq_child_count(network) || layer == nullptr) return nullptr;
    const emq::Layer *found = network->network.find(layer);
    return found == nullptr ? nullptr : found->method(child);
}

int emq_run(emq_network *network, int32_t child, const float *images, int64_t count, float *logits) {
    return guarded([&] {
        if (network == nullptr || images == nullptr || logits == nullptr || count < 1) {
            throw emq::Failure("a request needs a network, images, at least one, and a place for the logits");
        }
        network->network.run(child, images, count, logits, nullptr, nullptr);
    });
}

int emq_trace(emq_network *network, int32_t child, const float *image, float *logits, emq_watch watch,
              void *context) {
    return guarded([&] {
        if (network == nullptr || image == nullptr || logits == nullptr || watch == nullptr) {
            throw emq::Failure("a trace needs a network, an image, a place for the logits and a function to call");
        }
        network->network.run(child, image, 1, logits, watch, context);
    });
}
}
