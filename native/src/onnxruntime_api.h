// What of onnxruntime's C interface our operator calls, so that no header of it has to be installed.
//
// Its table of functions only grows at the end, and the table of an operator grows with the version that it names, so
// places and layouts of version 17 (onnxruntime 1.17) hold for every later release.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emq::onnxruntime {

constexpr uint32_t api_version = 17;

// Types of onnxruntime that are only passed on.
struct Status;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct Context;
struct Value;
struct TensorInfo;
struct ShapeContext;

enum ElementType { undefined_type = 0, float_type = 1, uint8_type = 2, int32_type = 6, int64_type = 7 };
enum Characteristic { required, optional, variadic };
constexpr int fail_code = 1;

// The functions of the table that we call, each with its place; all but the last of a name return null or an error.
enum Place {
    create_status = 0,               // Status *(int code, const char *message)
    create_domain = 26,              // (const char *name, Domain **)
    add_to_domain = 27,              // (Domain *, const Operator *)
    add_domain = 28,                 // (SessionOptions *, Domain *)
    tensor_data = 51,                // (Value *, void **)
    tensor_type = 60,                // (const TensorInfo *, ElementType *)
    dimension_count = 61,            // (const TensorInfo *, size_t *)
    dimensions = 62,                 // (const TensorInfo *, int64_t *, size_t)
    tensor_info = 65,                // (const Value *, TensorInfo **)
    input_count = 88,                // (const Context *, size_t *)
    output_count = 89,               // (const Context *, size_t *)
    input_value = 90,                // (const Context *, size_t, const Value **)
    output_value = 91,               // (Context *, size_t, const int64_t *, size_t, Value **)
    release_status = 93,             // void (Status *)
    release_tensor_info = 99,        // void (TensorInfo *)
    constant_input = 249,            // (const KernelInfo *, size_t, int *is_constant, const Value **)
    parallel_for = 274,              // (const Context *, void (*)(void *, size_t), size_t total, size_t batches, void *)
};

// The table of functions.
struct Api {
    void *functions[275];

    // Calls the function at a place; the arguments have to be of exactly the types that it takes.
    template <typename Result = Status *, typename... Arguments>
    Result call(Place place, Arguments... arguments) const {
        return reinterpret_cast<Result (*)(Arguments...)>(functions[place])(arguments...);
    }
};

struct ApiBase {
    const Api *(*get)(uint32_t version);  // null where onnxruntime is older
    const char *(*version)();
};

// An operator, as version 17 has it.
struct Operator {
    uint32_t version;
    void *(*create_kernel_1)(const Operator *, const Api *, const KernelInfo *);
    const char *(*name)(const Operator *);
    const char *(*provider)(const Operator *);
    ElementType (*input_type)(const Operator *, size_t index);
    size_t (*input_types)(const Operator *);
    ElementType (*output_type)(const Operator *, size_t index);
    size_t (*output_types)(const Operator *);
    void (*compute_1)(void *kernel, Context *);
    void (*destroy)(void *kernel);
    Characteristic (*input_characteristic)(const Operator *, size_t index);
    Characteristic (*output_characteristic)(const Operator *, size_t index);
    int (*input_memory)(const Operator *, size_t index);  // 0: where the provider has it
    int (*least_variadic_inputs)(const Operator *);
    int (*variadic_inputs_alike)(const Operator *);
    int (*least_variadic_outputs)(const Operator *);
    int (*variadic_outputs_alike)(const Operator *);
    Status *(*create_kernel)(const Operator *, const Api *, const KernelInfo *, void **kernel);
    Status *(*compute)(void *kernel, Context *);
    Status *(*infer_shapes)(const Operator *, ShapeContext *);
    int (*first_version)(const Operator *);
    int (*last_version)(const Operator *);
};

}  // namespace emq::onnxruntime
