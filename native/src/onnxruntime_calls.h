// Calls of onnxruntime's interface: what it refuses becomes an exception, and its threads our workers.
#pragma once

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "failure.h"
#include "onnxruntime_api.h"
#include "pool.h"

namespace emq::onnxruntime {

struct Shaped {
    void *data = nullptr;
    ElementType type = undefined_type;
    std::vector<int64_t> sides;

    int64_t count() const {
        int64_t product = 1;
        for (const int64_t side : sides) product *= side;
        return product;
    }
};

class Calls {
  public:
    explicit Calls(const Api &api) : api_(api) {}

    template <typename... Arguments>
    void operator()(Place place, Arguments... arguments) const {
        if (Status *status = api_.call(place, arguments...)) {
            api_.call<void>(release_status, status);
            throw Failure("onnxruntime refused function " + std::to_string(place) + " to a part of the network");
        }
    }

    Status *failed(const char *sentence) const { return api_.call(create_status, fail_code, sentence); }

    Shaped tensor(const Value *value) const {
        TensorInfo *info = nullptr;
        (*this)(tensor_info, value, &info);
        const TensorInfo *known = info;
        Shaped found;
        size_t rank = 0;
        (*this)(tensor_type, known, &found.type);
        (*this)(dimension_count, known, &rank);
        found.sides.resize(rank);
        (*this)(dimensions, known, found.sides.data(), rank);
        api_.call<void>(release_tensor_info, info);
        (*this)(tensor_data, const_cast<Value *>(value), &found.data);
        return found;
    }

  private:
    const Api &api_;
};

// How many threads a session was seen to have, and in how many shared steps.
struct SeenThreads {
    std::atomic<int> most{1}, steps{0};
};

// The threads of a session, for one run. onnxruntime does not tell how many there are: as many as ever took part in one
// step; the first steps are shared as if there were two, to find out.
class Threads : public Workers {
  public:
    Threads(const Calls &calls, const Context *context, SeenThreads &seen)
        : calls_(calls), context_(context), seen_(seen) {}

    int threads() const override { return seen_.steps < steps_to_see ? std::max<int>(2, seen_.most) : seen_.most.load(); }

    void run(int chunks, const std::function<void(int)> &work) override {
        if (chunks == 1) return work(0);
        static std::atomic<uint64_t> turns{0};
        struct Turn {
            const std::function<void(int)> &work;
            const uint64_t number;
            std::atomic<int> threads{0};
        } turn{work, ++turns};
        void (*const one)(void *, size_t) = [](void *given, size_t chunk) {
            Turn &mine = *static_cast<Turn *>(given);
            thread_local uint64_t last = 0;
            if (last != mine.number) mine.threads++;
            last = mine.number;
            mine.work(static_cast<int>(chunk));
        };
        const size_t total = static_cast<size_t>(chunks);
        calls_(parallel_for, context_, one, total, total, static_cast<void *>(&turn));
        seen_.steps += seen_.steps < steps_to_see ? 1 : 0;
        const int most = std::min(turn.threads.load(), most_threads);
        for (int seen = seen_.most; seen < most && !seen_.most.compare_exchange_weak(seen, most);) continue;
    }

  private:
    static constexpr int most_threads = 64, steps_to_see = 100;

    const Calls &calls_;
    const Context *context_;
    SeenThreads &seen_;
};

}  // namespace emq::onnxruntime
