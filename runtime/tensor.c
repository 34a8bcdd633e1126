/* tensor.c - headers, storage, views, reading and writing. */
#include "runtime/tensor_impl.h"
#include "runtime/shard_impl.h"
#include "runtime/tape.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <string.h>

static const int dtype_size[LM_DTYPES] = {4, 2, 4, 8, 1};
static const char *const dtype_name[LM_DTYPES] = {"f32", "bf16", "i32", "i64", "u8"};

int lm_dtype_size(int dtype) { return dtype >= 0 && dtype < LM_DTYPES ? dtype_size[dtype] : 0; }

const char *lm_dtype_name(int dtype) {
    return dtype >= 0 && dtype < LM_DTYPES ? dtype_name[dtype] : "?";
}

bool lm__is_float(int dtype) { return dtype == LM_F32 || dtype == LM_BF16; }

char *lm__shape_text(int ndim, const int64_t *shape, char buf[96]) {
    int n = snprintf(buf, 96, "[");
    for (int d = 0; d < ndim; d++)
        n += snprintf(buf + n, (size_t)(96 - n), d ? ", %lld" : "%lld", (long long)shape[d]);
    snprintf(buf + n, (size_t)(96 - n), "]");
    return buf;
}

char *lm__describe(const lm_tensor *t, char buf[96]) {
    lm__shape_text(t->ndim, t->shape, buf);
    size_t n = strlen(buf);
    snprintf(buf + n, 96 - n, " %s", dtype_name[t->dtype]);
    return buf;
}

bool lm__same_shape(const lm_tensor *a, const lm_tensor *b) {
    return a->ndim == b->ndim &&
           !memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof *a->shape);
}

int lm__dim(const char *op, const lm_tensor *x, int64_t dim, int *out) {
    int n = x->ndim ? x->ndim : 1;
    if (dim < -n || dim >= n)
        return lm_fail(LM_EARG, "%s: dim %lld of a tensor with %d dim%s", op, (long long)dim,
                       x->ndim, x->ndim == 1 ? "" : "s");
    *out = (int)(dim < 0 ? dim + n : dim);
    return LM_OK;
}

int lm__exists(const char *op, const lm_tensor *x) {
    if (!x) return lm_fail(LM_EARG, "%s: a tensor is missing", op);
    if (!x->storage) return lm_fail(LM_EDISPOSED, "%s: the tensor was disposed", op);
    return LM_OK;
}

int lm__usable(const char *op, const lm_tensor *x) {
    int st = lm__exists(op, x);
    if (st == LM_OK && !x->storage->data) st = lm__shard_needed(op, x->storage);
    if (st == LM_OK && x->storage->moved) /* what x is does not change, only where it lies */
        ((lm_tensor *)(uintptr_t)x)->data = x->storage->data + x->offset;
    return st;
}

void lm__contiguous_strides(int ndim, const int64_t *shape, int64_t *stride) {
    int64_t s = 1;
    for (int d = ndim - 1; d >= 0; d--) {
        stride[d] = s;
        s *= shape[d] > 1 ? shape[d] : 1;
    }
}

/* ---- headers and storage ---- */

static int64_t next_id = 1;

static lm_tensor *header_new(void) {
    lm_tensor *t = lm__object_new(sizeof *t);
    if (!t) return NULL;
    t->refs = 1;
    t->requires_grad = false;
    t->grad_dtype = LM_F32;
    t->storage = NULL, t->node = NULL, t->grad = NULL;
    t->output = 0;
    t->offset = 0;
    t->id = next_id++;
    return t;
}

static void header_free(lm_tensor *t) { lm__object_free(t, sizeof *t); }

static void storage_release(lm_storage *s) {
    if (!s || --s->refs > 0) return;
    lm__storage_drop(s);
    lm__object_free(s, sizeof *s);
}

void lm__storage_drop(lm_storage *s) {
    if (s->data) lm__memory_free(s->data, s->bytes, s->purpose);
    s->data = NULL, s->moved = true;
}

int lm__storage_restore(lm_storage *s) {
    if (s->data) return LM_OK;
    void *data;
    int before = lm_memory_set_purpose(s->purpose), purpose;
    int st = lm__memory_obtain(s->bytes, &data, &purpose);
    lm_memory_set_purpose(before);
    if (st == LM_OK) s->data = data;
    return st;
}

static int storage_new(int64_t bytes, lm_storage **out) {
    lm_storage *s = lm__object_new(sizeof *s);
    if (!s) return lm_fail(LM_EOOM, "no memory for a storage header");
    void *data;
    int st = lm__memory_obtain(bytes, &data, &s->purpose);
    if (st != LM_OK) {
        lm__object_free(s, sizeof *s);
        return st;
    }
    s->refs = 1, s->version = 0, s->bytes = bytes, s->data = data;
    s->moved = false, s->shard = NULL;
    *out = s;
    return LM_OK;
}

static int set_shape(lm_tensor *t, int ndim, const int64_t *shape) {
    int64_t numel = 1;
    for (int d = 0; d < ndim; d++) {
        if (shape[d] < 0)
            return lm_fail(LM_ESHAPE, "a tensor cannot have size %lld in dim %d",
                           (long long)shape[d], d);
        if (__builtin_mul_overflow(numel, shape[d], &numel) || numel > (int64_t)1 << 46)
            return lm_fail(LM_EOOM, "no memory: a tensor of that many elements cannot be");
        t->shape[d] = shape[d];
    }
    t->ndim = (int8_t)ndim;
    t->numel = numel;
    return LM_OK;
}

int lm_tensor_new(int dtype, int ndim, const int64_t *shape, lm_tensor **out) {
    if (dtype < 0 || dtype >= LM_DTYPES)
        return lm_fail(LM_EDTYPE, "no dtype has number %d", dtype);
    if (ndim < 0 || ndim > LM_MAX_DIMS)
        return lm_fail(LM_ESHAPE, "a tensor has at most %d dims, not %d", LM_MAX_DIMS, ndim);
    lm_tensor *t = header_new();
    if (!t) return lm_fail(LM_EOOM, "no memory for a tensor header");
    int st = set_shape(t, ndim, shape);
    if (st == LM_OK) st = storage_new(t->numel * dtype_size[dtype], &t->storage);
    if (st != LM_OK) {
        header_free(t);
        return st;
    }
    t->dtype = (int8_t)dtype;
    t->data = t->storage->data;
    lm__contiguous_strides(ndim, shape, t->stride);
    *out = t;
    return LM_OK;
}

int lm__tensor_like(const lm_tensor *x, int dtype, lm_tensor **out) {
    return lm_tensor_new(dtype, x->ndim, x->shape, out);
}

int lm__tensor_view(lm_tensor *x, int ndim, const int64_t *shape, const int64_t *stride,
                    int64_t offset, lm_tensor **out) {
    if (ndim > LM_MAX_DIMS)
        return lm_fail(LM_ESHAPE, "a tensor has at most %d dims, not %d", LM_MAX_DIMS, ndim);
    lm_tensor *t = header_new();
    if (!t) return lm_fail(LM_EOOM, "no memory for a tensor header");
    int st = set_shape(t, ndim, shape);
    if (st != LM_OK) {
        header_free(t);
        return st;
    }
    memcpy(t->stride, stride, (size_t)ndim * sizeof *stride);
    t->dtype = x->dtype;
    t->storage = x->storage;
    t->storage->refs++;
    t->offset = x->offset + offset * dtype_size[x->dtype];
    t->data = t->storage->data ? t->storage->data + t->offset : NULL;
    *out = t;
    return LM_OK;
}

int lm__tensor_alias(lm_tensor *x, lm_tensor **out) {
    lm_tensor *t = lm__object_new(sizeof *t);
    if (!t) return lm_fail(LM_EOOM, "no memory for a tensor header");
    *t = *x;
    t->refs = 1;
    t->requires_grad = false;
    t->node = NULL, t->grad = NULL;
    t->output = 0;
    t->id = next_id++;
    t->storage->refs++;
    t->data = t->storage->data ? t->storage->data + t->offset : NULL;
    *out = t;
    return LM_OK;
}

void lm_tensor_retain(lm_tensor *t) { t->refs++; }

void lm_tensor_dispose(lm_tensor *t) {
    storage_release(t->storage);
    t->storage = NULL, t->data = NULL;
    lm_tensor_release(t->grad);
    t->grad = NULL;
    lm_node *node = t->node;
    t->node = NULL;
    if (node) lm__node_release_from(node, t);
}

int lm_tensor_unload(lm_tensor *t) {
    int st = lm__exists("unload", t);
    if (st == LM_OK && t->storage->shard)
        return lm_fail(LM_EARG, "unload: parameter '%s' is under a unit",
                       t->storage->shard->name);
    if (st == LM_OK) lm__storage_drop(t->storage);
    return st;
}

int lm_tensor_load(lm_tensor *t) {
    int st = lm__exists("load", t);
    return st == LM_OK ? lm__storage_restore(t->storage) : st;
}

void lm_tensor_release(lm_tensor *t) {
    if (!t || --t->refs > 0) return;
    lm_tensor_dispose(t);
    header_free(t);
}

/* ---- creation ---- */

int lm_tensor_full(int dtype, int ndim, const int64_t *shape, double value, lm_tensor **out) {
    lm_tensor *t;
    int st = lm_tensor_new(dtype, ndim, shape, &t);
    if (st != LM_OK) return st;
    st = lm_cpu_kernels.fill(t->data, dtype, t->numel, value);
    if (st == LM_OK) *out = t;
    else lm_tensor_release(t);
    return st;
}

int lm_tensor_from(int dtype, int ndim, const int64_t *shape, const void *src,
                   lm_tensor **out) {
    lm_tensor *t;
    int st = lm_tensor_new(dtype, ndim, shape, &t);
    if (st != LM_OK) return st;
    if (t->numel) memcpy(t->data, src, (size_t)(t->numel * dtype_size[dtype]));
    *out = t;
    return LM_OK;
}

int lm_tensor_arange(int dtype, double start, double step, int64_t count, lm_tensor **out) {
    lm_tensor *t = NULL;
    int st = lm_tensor_new(dtype, 1, &count, &t);
    if (st != LM_OK) return st;
    for (int64_t i = 0; i < count && st == LM_OK; i++) {
        double value = start + step * (double)i;
        switch (dtype) {
        case LM_F32: ((float *)(void *)t->data)[i] = (float)value; break;
        case LM_I32: ((int32_t *)(void *)t->data)[i] = (int32_t)value; break;
        case LM_I64: ((int64_t *)(void *)t->data)[i] = (int64_t)value; break;
        default: st = lm_cpu_kernels.fill(t->data + i * dtype_size[dtype], dtype, 1, value);
        }
    }
    if (st == LM_OK) *out = t;
    else lm_tensor_release(t);
    return st;
}

/* ---- facts ---- */

int lm_tensor_dtype(const lm_tensor *t) { return t->dtype; }
int lm_tensor_ndim(const lm_tensor *t) { return t->ndim; }
double lm_tensor_numel(const lm_tensor *t) { return (double)t->numel; }
double lm_tensor_size(const lm_tensor *t, int dim) { return (double)t->shape[dim]; }
double lm_tensor_stride(const lm_tensor *t, int dim) { return (double)t->stride[dim]; }
double lm_tensor_id(const lm_tensor *t) { return (double)t->id; }

void *lm_tensor_data(const lm_tensor *t) {
    return t->storage && t->storage->data ? t->storage->data + t->offset : NULL;
}

int lm_tensor_is_contiguous(const lm_tensor *t) {
    int64_t s = 1;
    if (t->numel == 0) return 1;
    for (int d = t->ndim - 1; d >= 0; d--) {
        if (t->shape[d] != 1 && t->stride[d] != s) return 0;
        s *= t->shape[d];
    }
    return 1;
}

int lm_tensor_shares_storage(const lm_tensor *a, const lm_tensor *b) {
    return a->storage && a->storage == b->storage;
}

void lm_tensor_set_purpose(lm_tensor *t, int purpose) {
    lm_storage *s = t->storage;
    if (!s || purpose < 0 || purpose >= LM_MEM_PURPOSES) return;
    if (s->data) lm__memory_rebook(s->bytes, s->purpose, purpose);
    s->purpose = purpose;
}

/* ---- reading and writing ---- */

static int copy_strided(void *dst, int dst_dtype, const int64_t *dst_stride,
                        const lm_tensor *src) {
    return lm_cpu_kernels.copy_strided(dst, dst_dtype, src->data, src->dtype, src->ndim,
                                       src->shape, dst_stride, src->stride);
}

int lm__tensor_dense(lm_tensor *x, int dtype, lm_tensor **out) {
    if (x->dtype == dtype && lm_tensor_is_contiguous(x)) {
        lm_tensor_retain(x);
        *out = x;
        return LM_OK;
    }
    lm_tensor *t;
    int st = lm__tensor_like(x, dtype, &t);
    if (st != LM_OK) return st;
    st = copy_strided(t->data, dtype, t->stride, x);
    if (st == LM_OK) *out = t;
    else lm_tensor_release(t);
    return st;
}

static double element(const char *p, int dtype) {
    switch (dtype) {
    case LM_F32: return (double)*(const float *)(const void *)p;
    case LM_BF16: {
        uint32_t bits = (uint32_t) * (const uint16_t *)(const void *)p << 16;
        float f;
        memcpy(&f, &bits, sizeof f);
        return (double)f;
    }
    case LM_I32: return (double)*(const int32_t *)(const void *)p;
    case LM_I64: return (double)*(const int64_t *)(const void *)p;
    default: return (double)*(const uint8_t *)p;
    }
}

/* Bytes from data to the element at a row-major position. */
static int64_t element_offset(const lm_tensor *t, int64_t position) {
    int64_t offset = 0;
    for (int d = t->ndim - 1; d >= 0; d--) {
        offset += position % t->shape[d] * t->stride[d];
        position /= t->shape[d];
    }
    return offset * dtype_size[t->dtype];
}

int lm_tensor_get(const lm_tensor *t, int64_t position, double *out) {
    int st = lm__usable("item", t);
    if (st != LM_OK) return st;
    if (position < 0 || position >= t->numel)
        return lm_fail(LM_EARG, "item: position %lld of %lld elements", (long long)position,
                       (long long)t->numel);
    *out = element(t->data + element_offset(t, position), t->dtype);
    return LM_OK;
}

int lm_tensor_read(lm_tensor *t, double *dst, int64_t count) {
    int st = lm__usable("read", t);
    if (st != LM_OK) return st;
    if (count > t->numel) count = t->numel;
    for (int64_t i = 0; i < count; i++)
        dst[i] = element(t->data + element_offset(t, i), t->dtype);
    return LM_OK;
}

int lm__broadcast_strides(const lm_tensor *src, int ndim, const int64_t *shape,
                          int64_t *stride) {
    int lead = ndim - src->ndim;
    if (lead < 0) return LM_ESHAPE;
    for (int d = 0; d < ndim; d++) {
        int64_t size = d < lead ? 1 : src->shape[d - lead];
        if (size != shape[d] && size != 1) return LM_ESHAPE;
        stride[d] = d < lead || size == 1 ? 0 : src->stride[d - lead];
    }
    return LM_OK;
}

static int writable(const char *op, lm_tensor *t) {
    int st = lm__usable(op, t);
    if (st == LM_OK && t->requires_grad && lm__grad_enabled())
        return lm_fail(LM_EGRAD,
                       "%s: in-place write to a tensor that requires a gradient; wrap it in "
                       "no_grad, or write to x:detach()",
                       op);
    return st;
}

int lm_tensor_copy(lm_tensor *t, lm_tensor *src) {
    char a[96], b[96];
    int64_t stride[LM_MAX_DIMS];
    int st = writable("copy", t);
    if (st == LM_OK) st = lm__usable("copy", src);
    if (st != LM_OK) return st;
    if (lm__broadcast_strides(src, t->ndim, t->shape, stride) != LM_OK)
        return lm_fail(LM_ESHAPE, "copy: %s does not broadcast to %s", lm__describe(src, a),
                       lm__describe(t, b));
    lm_tensor *from = src; /* overlapping views of one storage: through a copy */
    if (t->storage == src->storage && t->numel &&
        !(t->data == src->data && lm__same_shape(t, src))) {
        lm_tensor *apart;
        st = lm__tensor_like(src, src->dtype, &apart);
        if (st != LM_OK) return st;
        st = copy_strided(apart->data, apart->dtype, apart->stride, src);
        lm__broadcast_strides(apart, t->ndim, t->shape, stride);
        from = apart;
    }
    if (st == LM_OK)
        st = lm_cpu_kernels.copy_strided(t->data, t->dtype, from->data, from->dtype, t->ndim,
                                         t->shape, t->stride, stride);
    if (from != src) lm_tensor_release(from);
    t->storage->version++;
    return st;
}

int lm_tensor_fill(lm_tensor *t, double value) {
    int st = writable("fill", t);
    if (st != LM_OK) return st;
    t->storage->version++;
    if (lm_tensor_is_contiguous(t))
        return lm_cpu_kernels.fill(t->data, t->dtype, t->numel, value);
    lm_tensor *one;
    st = lm_tensor_full(t->dtype, 0, NULL, value, &one);
    if (st == LM_OK) st = lm_tensor_copy(t, one), lm_tensor_release(one);
    return st;
}

int lm_tensor_set_data(lm_tensor *t, lm_tensor *src) {
    char a[96], b[96];
    int st = lm__usable("set_data", src);
    if (st != LM_OK) return st;
    if (!lm__same_shape(t, src))
        return lm_fail(LM_ESHAPE, "set_data: %s cannot become %s", lm__describe(t, a),
                       lm__describe(src, b));
    if (t->storage && t->storage->shard)
        return lm_fail(LM_EARG,
                       "set_data: parameter '%s' is divided between ranks; undo that first",
                       t->storage->shard->name);
    src->storage->refs++;
    storage_release(t->storage);
    t->storage = src->storage, t->dtype = src->dtype;
    t->data = src->data, t->offset = src->offset;
    memcpy(t->stride, src->stride, sizeof t->stride);
    return LM_OK;
}

/* ---- gradients of leaves ---- */

int lm_tensor_requires_grad(const lm_tensor *t) { return t->requires_grad; }
int lm_tensor_is_leaf(const lm_tensor *t) { return !t->node || lm__node_is_leaf(t->node); }

int lm_tensor_set_requires_grad(lm_tensor *t, int on) {
    int st = lm__exists("requires_grad", t);
    if (st != LM_OK) return st;
    if (on && !lm__is_float(t->dtype))
        return lm_fail(LM_EDTYPE, "requires_grad: only f32 and bf16 have gradients, this is %s",
                       dtype_name[t->dtype]);
    if (!lm_tensor_is_leaf(t))
        return lm_fail(LM_EGRAD,
                       "requires_grad: the tensor was computed; use x:detach() for one "
                       "that was not");
    t->requires_grad = on != 0;
    return LM_OK;
}

int lm_tensor_grad(lm_tensor *t, lm_tensor **out) {
    int st = lm__exists("grad", t);
    if (st != LM_OK) return st;
    if (t->grad) lm_tensor_retain(t->grad);
    *out = t->grad;
    return LM_OK;
}

int lm_tensor_set_grad(lm_tensor *t, lm_tensor *grad) {
    char a[96], b[96];
    if (grad && !lm__same_shape(t, grad))
        return lm_fail(LM_ESHAPE, "grad: %s cannot be the gradient of %s",
                       lm__describe(grad, a), lm__describe(t, b));
    if (!grad) {
        int st = lm__shard_forget(t);
        if (st != LM_OK) return st;
    }
    if (grad) lm_tensor_retain(grad);
    lm_tensor_release(t->grad);
    t->grad = grad;
    return LM_OK;
}

int lm_tensor_grad_dtype(const lm_tensor *t) { return t->grad_dtype; }

int lm_tensor_set_grad_dtype(lm_tensor *t, int dtype) {
    int st = lm__exists("grad_dtype", t);
    if (st != LM_OK) return st;
    if (!lm__is_float(dtype))
        return lm_fail(LM_EDTYPE, "grad_dtype: gradients are f32 or bf16, not %s",
                       dtype >= 0 && dtype < LM_DTYPES ? dtype_name[dtype] : "that");
    t->grad_dtype = (int8_t)dtype;
    return LM_OK;
}
