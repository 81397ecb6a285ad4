/* emqdeploy's native runtime: a multi-bit network that switches its child at no cost. Plain C.
 *
 * Functions that can fail return 0, or -1 where `emq_error` then gives one sentence. Every function may be called from
 * any number of threads. A request keeps the child that it began with, whatever is put in use meanwhile.
 */
#ifndef EMQ_H
#define EMQ_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define EMQ_API __attribute__((visibility("default")))
#else
#define EMQ_API
#endif

#define EMQ_VERSION 1

/* An open network. A handle and no address: one that was closed is refused, whoever still has it. */
typedef struct emq_network emq_network;

/* Instead of a child's index: the child that `emq_use` put in use, at first the last one. */
#define EMQ_IN_USE (-1)

EMQ_API int32_t emq_version(void);
/* The sentence of the last call that failed in this thread. */
EMQ_API const char *emq_error(void);
/* The instruction sets that this processor has kernels for, best first, separated by spaces; the first one is used
 * unless the environment variable EMQ_ISA names another of them. */
EMQ_API const char *emq_instruction_sets(void);

/* Networks are timed when they are opened, and which kernels were fastest is kept in the user's cache. This forgets it:
 * those that are opened from now on are timed again. */
EMQ_API int emq_forget_tuning(void);

/* --- opening and closing --- */

/* Opens a `.emq` file, or a bundle: its directory or manifest.json. threads: 0 takes as many as there are cores. */
EMQ_API int emq_open(const char *path, int32_t threads, emq_network **network);
/* The same for a `.emq` that lies in memory, which is not needed afterwards. */
EMQ_API int emq_open_bytes(const void *bytes, size_t size, int32_t threads, emq_network **network);
/* Requests that are running end as ever, and the last of them gives the memory back. */
EMQ_API void emq_close(emq_network *network);

/* --- what a network is; texts and arrays live until it is closed --- */

/* What it takes: a pixel of 0..255 becomes (pixel / 255 - mean) / std of its channel. */
typedef struct {
    int32_t channels, height, width;
    const float *mean, *std; /* one per channel; null where the network was created without */
} emq_pixels;

EMQ_API int emq_input(const emq_network *network, emq_pixels *pixels);
EMQ_API int32_t emq_class_count(const emq_network *network);
/* Null for an index that there is not, as for children. */
EMQ_API const char *emq_class_name(const emq_network *network, int32_t index);
EMQ_API int32_t emq_child_count(const emq_network *network);
EMQ_API const char *emq_child_name(const emq_network *network, int32_t child);
/* The index of a child, or -1. */
EMQ_API int32_t emq_find_child(const emq_network *network, const char *name);
/* Bytes that the network keeps, all children together; working memory comes on top for each request that runs. */
EMQ_API size_t emq_size_bytes(const emq_network *network);
/* How a layer is computed at a child, such as "2-bit lookup"; null where there is no such layer or child. */
EMQ_API const char *emq_layer_method(const emq_network *network, int32_t child, const char *layer);

/* --- running; `child` is an index or EMQ_IN_USE --- */

/* Puts a child in use for the requests that begin from now on. */
EMQ_API int emq_use(emq_network *network, int32_t child);
EMQ_API int32_t emq_used(const emq_network *network);
/* images: normalised float32 (count, channels, height, width). logits: (count, classes). */
EMQ_API int emq_run(emq_network *network, int32_t child, const float *images, int64_t count, float *logits);
/* images: pixels (count, height, width, channels), as image files have them: grey, or red first. */
EMQ_API int emq_run_pixels(emq_network *network, int32_t child, const uint8_t *images, int64_t count, float *logits);
/* The most probable class of one image of pixels, and its probability. */
EMQ_API int emq_classify(emq_network *network, int32_t child, const uint8_t *image, int32_t *best, double *probability);

/* --- for programs that have the numbers of a network already, and for tests --- */

/* What a child makes of a layer: arrays of one number per output channel. The integer weight of a code of `bits` bits,
 * the most significant of the stored ones, is gain * code + shift. */
typedef struct {
    const int32_t *gain, *shift, *bias;
    const uint8_t *bits;
    const float *scale; /* of one integer step of a weight */
} emq_layer_numbers;

typedef struct {
    const char *name;
    int64_t outputs, fan_in;           /* the shape of `codes` */
    const uint8_t *codes;              /* of 8 bits; of a pinned layer its int8 weights plus 128 */
    const emq_layer_numbers *children; /* one per child */
} emq_layer;

/* An activation tensor: per child the value of one step, and the codes that it keeps to. */
typedef struct {
    const char *name;
    const float *scales;
    const int32_t *lows, *highs;
} emq_site;

/* A network whose numbers the caller has; everything is copied. */
typedef struct {
    const uint8_t *graph; /* the weightless ONNX graph */
    size_t graph_size;
    int32_t channels, height, width, classes; /* of the image, and of the answer */
    int32_t child_count, layer_count, site_count;
    const char *const *child_names;
    const emq_layer *layers;
    const emq_site *sites;
    int32_t threads; /* 0: as many as the process may use */
} emq_source;

/* Given a tensor's codes in the order (channels, height, width), as soon as they are computed. */
typedef void (*emq_watch)(void *context, const char *site, const uint8_t *codes, int32_t channels, int32_t height,
                          int32_t width);

EMQ_API int emq_create(const emq_source *source, emq_network **network);
/* Runs one normalised image and shows every quantized tensor. */
EMQ_API int emq_trace(emq_network *network, int32_t child, const float *image, float *logits, emq_watch watch,
                      void *context);

#ifdef __cplusplus
}
#endif
#endif
