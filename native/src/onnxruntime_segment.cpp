// An operator for onnxruntime, `emqdeploy.Segment`: what a network computes in integers between its operators in
// float, at every child. A session packs the weights once for all children, a run copies none of them, and its work is
// shared among the session's own threads.
#include <climits>
#include <new>

#include "dispatch.h"
#include "emq_onnxruntime.h"
#include "network.h"
#include "onnxruntime_constants.h"

namespace emq::onnxruntime {
namespace {

constexpr const char *domain_name = "emqdeploy";

thread_local emq_listener listener = nullptr;
thread_local void *listener_context = nullptr;

class Segment {
  public:
    Segment(const Calls &calls, const Constants &constants)
        : calls_(calls),
          inputs_(constants.graph().inputs),
          outputs_(constants.graph().outputs),
          values_(constants.values()),
          network_(constants.source(), chosen_kernels()) {
        for (size_t i = 0; i < outputs_.size(); i++) {
            if (Shaped{nullptr, undefined_type, outputs_[i].shape}.count() !=
                static_cast<int64_t>(network_.outputs()[i].shape.values())) {
                throw Failure("the graph says another shape of " + outputs_[i].name + " than it computes");
            }
        }
        tell(constants.source());
    }

    void run(Context *context) {
        const int child = chosen(context);
        Ends ends;
        int64_t images = -1;
        for (size_t i = 0; i < inputs_.size(); i++) {
            const Shaped given = input(context, first_data_input + i);
            const int64_t batch = images_in(given, inputs_[i]);
            if (images >= 0 && batch != images) throw Failure("the inputs of a segment have different batches");
            images = batch;
            ends.inputs.push_back(given.data);
        }
        for (size_t i = 0; i < outputs_.size(); i++) {
            std::vector<int64_t> sides = outputs_[i].shape;
            sides[0] *= images;
            const int64_t *known = sides.data();
            Value *value = nullptr;
            calls_(output_value, context, i, known, sides.size(), &value);
            void *data = nullptr;
            calls_(tensor_data, value, &data);
            ends.outputs.push_back(data);
        }
        Threads threads(calls_, context, threads_);
        network_.run(child, ends, images, threads);
    }

  private:
    void tell(const emq_source &source) const {
        for (int layer = 0; listener != nullptr && layer < source.layer_count; layer++) {
            const char *name = source.layers[layer].name;
            for (int child = 0; child < source.child_count; child++) {
                listener(listener_context, name, child, network_.find(name)->method(child));
            }
        }
    }

    Shaped input(const Context *context, size_t index) const {
        const Value *value = nullptr;
        calls_(input_value, context, index, &value);
        return calls_.tensor(value);
    }

    int chosen(const Context *context) const {
        const Shaped given = input(context, selector_input);
        if (given.count() != 1) throw Failure("bits has " + std::to_string(given.count()) + " values; give one");
        const int64_t value = *static_cast<const int64_t *>(given.data);
        std::string known;
        for (size_t child = 0; child < values_.size(); child++) {
            if (values_[child] == value) return static_cast<int>(child);
            known += (child > 0 ? ", " : "") + std::to_string(values_[child]);
        }
        throw Failure("bits is " + std::to_string(value) + ", this network has " + known + "; give one of these");
    }

    // How many images a tensor holds.
    static int64_t images_in(const Shaped &given, const emq::Value &end) {
        std::vector<int64_t> sides = given.sides;
        const int64_t rows = end.shape[0];
        const bool divides = !sides.empty() && sides[0] > 0 && sides[0] % rows == 0;
        const int64_t images = divides ? sides[0] / rows : 0;
        if (divides) sides[0] = rows;
        if (images < 1 || sides != end.shape || given.type != (end.codes ? uint8_type : float_type)) {
            throw Failure(end.name + " has another shape or type than the network takes");
        }
        return images;
    }

    const Calls calls_;
    const std::vector<emq::Value> inputs_, outputs_;
    const std::vector<int64_t> values_;
    Network network_;
    SeenThreads threads_;
};

// Runs a call of onnxruntime's; whatever goes wrong becomes a status with a sentence.
template <typename Call>
Status *guarded(const Calls &calls, Call &&call) {
    try {
        call();
        return nullptr;
    } catch (const std::bad_alloc &) {
        return calls.failed("there is not enough memory; give back another network or take a smaller one");
    } catch (const std::exception &error) {
        return calls.failed(error.what());
    }
}

struct Kernel {
    Calls calls;
    Segment segment;
};

const Operator segment_operator = [] {
    Operator made{};
    made.version = api_version;
    made.name = [](const Operator *) { return "Segment"; };
    made.provider = [](const Operator *) -> const char * { return nullptr; };
    made.input_type = [](const Operator *, size_t index) { return input_types[index]; };
    made.input_types = [](const Operator *) -> size_t { return first_data_input + 1; };
    made.output_type = [](const Operator *, size_t) { return undefined_type; };
    made.output_types = [](const Operator *) -> size_t { return 1; };
    made.input_characteristic = [](const Operator *, size_t index) {
        return index < first_data_input ? required : variadic;
    };
    made.output_characteristic = [](const Operator *, size_t) { return variadic; };
    made.input_memory = [](const Operator *, size_t) { return 0; };
    made.least_variadic_inputs = made.least_variadic_outputs = [](const Operator *) { return 1; };
    made.variadic_inputs_alike = made.variadic_outputs_alike = [](const Operator *) { return 0; };
    made.create_kernel = [](const Operator *, const Api *api, const KernelInfo *info, void **kernel) {
        const Calls calls(*api);
        return guarded(calls, [&] { *kernel = new Kernel{calls, Segment(calls, Constants(calls, info))}; });
    };
    made.compute = [](void *kernel, Context *context) {
        Kernel &mine = *static_cast<Kernel *>(kernel);
        return guarded(mine.calls, [&] { mine.segment.run(context); });
    };
    made.destroy = [](void *kernel) { delete static_cast<Kernel *>(kernel); };
    made.first_version = [](const Operator *) { return 1; };
    made.last_version = [](const Operator *) { return INT_MAX; };
    return made;
}();

}  // namespace
}  // namespace emq::onnxruntime

extern "C" void emq_listen(emq_listener told, void *context) {
    emq::onnxruntime::listener = told;
    emq::onnxruntime::listener_context = context;
}

// What onnxruntime calls when a program registers this library with the options of a session.
extern "C" EMQ_API emq::onnxruntime::Status *RegisterCustomOps(emq::onnxruntime::SessionOptions *options,
                                                               const emq::onnxruntime::ApiBase *base) {
    using namespace emq::onnxruntime;
    const Api *api = base->get(api_version);
    if (api == nullptr) {
        const std::string sentence = std::string("onnxruntime ") + base->version() +
                                     " is too old for the operators of emqdeploy; install onnxruntime 1.17 or newer";
        // The place of this function is the same in every version.
        return Calls(*base->get(1)).failed(sentence.c_str());
    }
    const Calls calls(*api);
    return guarded(calls, [&] {
        // It has to live as long as the sessions, which do not tell when they end.
        Domain *domain = nullptr;
        calls(create_domain, domain_name, &domain);
        calls(add_to_domain, domain, &segment_operator);
        calls(add_domain, options, domain);
    });
}
