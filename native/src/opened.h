// A network that is open: what its file says of it, the child in use, and the handle that callers have of it.
#pragma once

#include <atomic>
#include <memory>

#include "emq.h"
#include "header.h"
#include "network.h"

namespace emq {

class Opened {
  public:
    Opened(std::unique_ptr<Network> network, Card card);
    static std::shared_ptr<Opened> from_file(const char *path, int threads);
    static std::shared_ptr<Opened> from_bytes(const std::string &name, Span bytes, int threads);
    static std::shared_ptr<Opened> from_source(const emq_source &source);

    Network &network() { return *network_; }
    const Card &card() const { return card_; }
    int used() const { return used_; }
    void use(int child) { used_ = index(child); }
    // The index that a caller means; throws `Failure` for one that there is not.
    int index(int child) const;
    void run_pixels(int child, const uint8_t *images, int64_t count, float *logits);

  private:
    void normalise(const uint8_t *image, float *values) const;

    const std::unique_ptr<Network> network_;
    const Card card_;
    std::atomic<int32_t> used_;
};

// A new handle, never that of a network that was closed before.
emq_network *handle_of(std::shared_ptr<Opened> opened);
// Whoever holds it keeps the network, whatever is closed meanwhile. Throws `Failure` for a handle that is not open.
std::shared_ptr<Opened> find(const emq_network *handle);
void forget(const emq_network *handle);

}  // namespace emq
