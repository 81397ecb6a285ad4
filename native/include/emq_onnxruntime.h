/* emqdeploy's operators for onnxruntime. A program registers this library with the options of a session, by whatever its
 * language calls `RegisterCustomOpsLibrary`, and opens files that `emqdeploy export --kernels native` wrote. */
#ifndef EMQ_ONNXRUNTIME_H
#define EMQ_ONNXRUNTIME_H

#include "emq.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Told how a layer is computed at a child, by the child's place in the file. */
typedef void (*emq_listener)(void *context, const char *layer, int32_t child, const char *method);

/* Names the listener of this thread: it is told of every layer of the sessions that the thread creates from now on. Null
 * ends that. */
EMQ_API void emq_listen(emq_listener listener, void *context);

#ifdef __cplusplus
}
#endif
#endif
