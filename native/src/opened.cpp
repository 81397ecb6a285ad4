#include "opened.h"

#include <pthread.h>

#include <mutex>
#include <unordered_map>

#include "checkpoint.h"
#include "dispatch.h"
#include "failure.h"
#include "files.h"

namespace emq {
namespace {

class Handles {
  public:
    Handles() {
        // A child that is forked while another thread looks a handle up would wait for that thread for ever.
        pthread_atfork([] { all().mutex_.lock(); }, [] { all().mutex_.unlock(); }, [] { all().mutex_.unlock(); });
    }

    // Never destroyed: threads may run networks until the process ends.
    static Handles &all() {
        static Handles *handles = new Handles;
        return *handles;
    }

    uintptr_t add(std::shared_ptr<Opened> opened) {
        const std::lock_guard<std::mutex> lock(mutex_);
        open_[++last_] = std::move(opened);
        return last_;
    }

    std::shared_ptr<Opened> find(uintptr_t handle) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = open_.find(handle);
        return found == open_.end() ? nullptr : found->second;
    }

    std::shared_ptr<Opened> remove(uintptr_t handle) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = open_.find(handle);
        if (found == open_.end()) return nullptr;
        std::shared_ptr<Opened> opened = std::move(found->second);
        open_.erase(found);
        return opened;
    }

  private:
    std::mutex mutex_;
    std::unordered_map<uintptr_t, std::shared_ptr<Opened>> open_;
    uintptr_t last_ = 0;
};

uintptr_t number_of(const emq_network *handle) { return reinterpret_cast<uintptr_t>(handle); }

}  // namespace

Opened::Opened(std::unique_ptr<Network> network, Card card)
    : network_(std::move(network)), card_(std::move(card)), used_(static_cast<int>(network_->children().size()) - 1) {}

std::shared_ptr<Opened> Opened::from_file(const char *path, int threads) {
    const File file = read_checkpoint(path);
    return from_bytes(file.path, {file.bytes.data(), file.bytes.size()}, threads);
}

std::shared_ptr<Opened> Opened::from_bytes(const std::string &name, Span bytes, int threads) {
    const Checkpoint checkpoint(name, bytes);
    try {
        return std::make_shared<Opened>(checkpoint.network(threads, chosen_kernels()), checkpoint.card());
    } catch (const Failure &failure) {
        throw Failure(name + ": " + failure.what());
    }
}

std::shared_ptr<Opened> Opened::from_source(const emq_source &source) {
    Card card;
    for (int32_t index = 0; index < source.classes; index++) card.classes.push_back(std::to_string(index));
    card.channels = source.channels;
    card.height = source.height;
    card.width = source.width;
    return std::make_shared<Opened>(std::make_unique<Network>(source, chosen_kernels()), std::move(card));
}

int Opened::index(int child) const {
    if (child == EMQ_IN_USE) return used_;
    const int children = static_cast<int>(network_->children().size());
    if (child >= 0 && child < children) return child;
    throw Failure("child " + std::to_string(child) + " is none of 0.." + std::to_string(children - 1) +
                  "; emq_find_child gives the index of a name");
}

void Opened::run_pixels(int child, const uint8_t *images, int64_t count, float *logits) {
    if (card_.mean.empty()) {
        throw Failure("this network was created without its preprocessing; open its file, or give normalised images");
    }
    const int in_use = index(child);
    const size_t size = static_cast<size_t>(card_.channels) * static_cast<size_t>(card_.height * card_.width);
    std::vector<float> values(size);
    for (; count > 0; count--, images += size, logits += card_.classes.size()) {
        normalise(images, values.data());
        network_->run(in_use, values.data(), 1, logits, nullptr, nullptr);
    }
}

// (pixel / 255 - mean) / std, each step rounded to float32, and every channel a plane of its own, in the network's order.
void Opened::normalise(const uint8_t *image, float *values) const {
    const size_t channels = static_cast<size_t>(card_.channels);
    const size_t pixels = static_cast<size_t>(card_.height) * static_cast<size_t>(card_.width);
    for (size_t c = 0; c < channels; c++) {
        float value_of[256];
        for (int pixel = 0; pixel < 256; pixel++) {
            const float share = static_cast<float>(pixel) / 255.0f;
            const float centred = share - card_.mean[c];
            value_of[pixel] = centred / card_.deviation[c];
        }
        const size_t from = card_.bgr ? channels - 1 - c : c;
        for (size_t i = 0; i < pixels; i++) values[c * pixels + i] = value_of[image[i * channels + from]];
    }
}

emq_network *handle_of(std::shared_ptr<Opened> opened) {
    return reinterpret_cast<emq_network *>(Handles::all().add(std::move(opened)));
}

std::shared_ptr<Opened> find(const emq_network *handle) {
    std::shared_ptr<Opened> opened = Handles::all().find(number_of(handle));
    if (opened == nullptr) throw Failure("this network is not open, or was closed; open it again");
    return opened;
}

void forget(const emq_network *handle) { Handles::all().remove(number_of(handle)); }

}  // namespace emq
