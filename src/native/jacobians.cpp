// Whole Jacobians, their diagonals and eigenvalues.
#include "jacobians.h"

#include "eigenvalues.h"
#include "kernels.h"

namespace {

template <Function function, class T>
bool jacobians(const Rows& r) {
    ptrdiff_t n = r.n, results = function == SOFTMAX_JACOBIAN_DIAGONAL ? n : n * n;
    for (ptrdiff_t i = r.first; i < r.first + r.count; ++i) {
        auto p = static_cast<const T*>(r.x) + i * n;
        auto y = static_cast<T*>(r.y) + i * results;
        if constexpr (function == SOFTMAX_JACOBIAN) softmax_jacobian(p, y, n, r.threads, r.streams);
        else if constexpr (function == SOFTMAX_JACOBIAN_DIAGONAL) softmax_jacobian_diagonal(p, y, n);
        else log_softmax_jacobian(p, y, n, r.threads, r.streams);
    }
    if (r.streams) end_streams();
    return false;
}

bool eigenvalues(const Rows& r) {
    auto p = static_cast<const double*>(r.x);
    auto y = static_cast<double*>(r.y);
    for (ptrdiff_t i = r.first; i < r.first + r.count; ++i) eigenvalues(p + i * r.n, y + i * r.n, r.n, r.threads);
    return false;
}

}  // namespace

namespace FASTSOFTMAX_ISA {

const Kernel softmax_jacobian_kernels[TYPES] = {jacobians<SOFTMAX_JACOBIAN, float>, jacobians<SOFTMAX_JACOBIAN, double>};
const Kernel softmax_jacobian_diagonal_kernels[TYPES] = {jacobians<SOFTMAX_JACOBIAN_DIAGONAL, float>,
                                                         jacobians<SOFTMAX_JACOBIAN_DIAGONAL, double>};
const Kernel softmax_jacobian_eigenvalues_kernels[TYPES] = {nullptr, eigenvalues};
const Kernel log_softmax_jacobian_kernels[TYPES] = {jacobians<LOG_SOFTMAX_JACOBIAN, float>,
                                                    jacobians<LOG_SOFTMAX_JACOBIAN, double>};

}  // namespace FASTSOFTMAX_ISA
