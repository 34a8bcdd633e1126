/* lumoe.h - the C API, whole. The build also turns this file into the FFI's
 * declarations (cc -E -P -DLM_CDEF): what C compiles is what Lua declares. */
#ifndef LM_LUMOE_H
#define LM_LUMOE_H

#include "runtime/status.h"
#include "runtime/dist.h"
#include "runtime/moe.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"
#include "runtime/handle.h"
#include "runtime/autograd.h"
#include "runtime/random.h"
#include "runtime/ops.h"
#include "runtime/parallel.h"
#include "runtime/optim.h"
#include "runtime/shard.h"
#include "runtime/data.h"
#include "runtime/file.h"
#include "runtime/tier.h"
#include "runtime/offload.h"

#endif
