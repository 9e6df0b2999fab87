// What the module knows of the kernels: a range of rows in, rows out, one table per instruction set.
#pragma once
#include <cstddef>

enum Function { SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, FUNCTIONS };
enum Type { FLOAT32, FLOAT64, TYPES };

// `count` rows of `n` contiguous elements, one after the other; `y` has n elements a row, or one (logsumexp).
struct Rows {
    const void* x;
    void* y;
    ptrdiff_t count, n;
    const double* temperature;
    ptrdiff_t temperature_stride;  // 0: one for all rows, 1: one for each
};

using Kernel = bool (*)(const Rows&);  // true where a row has no answer: NumPy's 'invalid'

struct Kernels {
    const char* name;
    Kernel rows[FUNCTIONS][TYPES];
};

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512, kernels_neon;
