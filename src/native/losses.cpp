// Cross-entropy and its gradient.
#include "loss_rows.h"

#include "kernels.h"

namespace {

template <class T>
bool cross_entropy(const Rows& r) {
    LossRows<T> rows(r);
    if (r.n > middle_row_of<CROSS_ENTROPY, T>) rows.long_rows(r.count);
    else if (r.n > short_row_of<CROSS_ENTROPY, T>) rows.template short_rows<false>(r.count);
    else rows.template short_rows<true>(r.count);
    return rows.invalid;
}

}  // namespace

namespace FASTSOFTMAX_ISA {

const Kernel cross_entropy_kernels[TYPES] = {cross_entropy<float>, cross_entropy<double>};

}  // namespace FASTSOFTMAX_ISA
