// Threads that share the chunks of one step at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace emq {

class Workers {
  public:
    virtual ~Workers() = default;
    virtual int threads() const = 0;
    // Runs work(0) .. work(chunks - 1), in any order, and returns when all have ended.
    virtual void run(int chunks, const std::function<void(int)> &work) = 0;
};

// One request computes with the pool at a time; others that come meanwhile compute alone, which is as fast for all.
class Pool : public Workers {
  public:
    explicit Pool(int threads);
    ~Pool() override;
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int threads() const override { return static_cast<int>(workers_.size()) + 1; }

    // Whoever is free takes the next chunk, so a thread that the system takes away holds up one chunk only.
    void run(int chunks, const std::function<void(int)> &work) override;

  private:
    void serve();
    bool take(uint64_t turn);

    std::vector<std::thread> workers_;
    std::mutex mutex_, owner_;
    std::condition_variable wake_;
    const std::function<void(int)> *work_ = nullptr;
    // The turn in the upper 32 bits, the next chunk in the lower: a worker that comes late cannot take from the next turn.
    std::atomic<uint64_t> next_{0};
    std::atomic<int> chunks_{0}, done_{0};
    std::atomic<bool> ended_{false};
};

}  // namespace emq
