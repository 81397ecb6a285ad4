#include "pool.h"

#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace emq {
namespace {

// A network's steps follow one another within microseconds: so long it pays to look before one sleeps.
constexpr int looks = 4000;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

uint64_t turn_of(uint64_t next) { return next >> 32; }

}  // namespace

Pool::Pool(int threads) {
    for (int index = 1; index < threads; index++) {
        try {
            workers_.emplace_back([this] { serve(); });
        } catch (const std::system_error &) {
            return;  // fewer compute as well
        }
    }
}

Pool::~Pool() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        ended_ = true;
    }
    wake_.notify_all();
    for (std::thread &worker : workers_) worker.join();
}

void Pool::run(int chunks, const std::function<void(int)> &work) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (workers_.empty() || chunks < 2 || !owner.owns_lock()) {
        for (int chunk = 0; chunk < chunks; chunk++) work(chunk);
        return;
    }
    const uint64_t turn = turn_of(next_.load()) + 1;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        work_ = &work;
        chunks_ = chunks;
        done_ = 0;
        next_ = turn << 32;
    }
    wake_.notify_all();
    while (take(turn)) {
    }
    for (int look = 0; done_.load(std::memory_order_acquire) < chunks; look++) {
        look < looks ? relax() : std::this_thread::yield();
    }
}

// Takes one chunk of a turn; false where none is left, or the turn is over.
bool Pool::take(uint64_t turn) {
    uint64_t next = next_.load(std::memory_order_acquire);
    do {
        if (turn_of(next) != turn || static_cast<int>(next & 0xffffffffu) >= chunks_.load()) return false;
    } while (!next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel));
    (*work_)(static_cast<int>(next & 0xffffffffu));
    done_.fetch_add(1, std::memory_order_release);
    return true;
}

void Pool::serve() {
    uint64_t seen = 0;
    while (true) {
        int left = looks;
        while (turn_of(next_.load(std::memory_order_acquire)) == seen && !ended_ && left-- > 0) relax();
        if (turn_of(next_.load()) == seen && !ended_) {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return ended_ || turn_of(next_.load()) != seen; });
        }
        if (ended_) return;
        seen = turn_of(next_.load());
        while (take(seen)) {
        }
    }
}

}  // namespace emq
