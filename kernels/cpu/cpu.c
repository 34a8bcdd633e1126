/* cpu.c - scratch memory and the two conversions between f32 and bf16. */
#include "kernels/cpu/cpu.h"

#include <stdlib.h>

static _Thread_local struct {
    void *data;
    size_t bytes;
} slots[LM_SCRATCH_SLOTS];

void *lm__scratch(int slot, size_t bytes) {
    if (bytes == 0) bytes = 1; /* NULL means failure, even for nothing */
    if (slots[slot].bytes < bytes) {
        size_t rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096; /* room to grow */
        free(slots[slot].data);
        slots[slot].data = aligned_alloc(64, rounded);
        slots[slot].bytes = slots[slot].data ? rounded : 0;
    }
    return slots[slot].data;
}

LM_CLONES void lm__from_bf16(float *restrict dst, const uint16_t *restrict src, int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = lm_bf16_to_f32(src[i]);
}

LM_CLONES void lm__to_bf16(uint16_t *restrict dst, const float *restrict src, int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = lm_f32_to_bf16(src[i]);
}
