// Softmax, its logarithm and partition function, whole or of a part of each row.
#include "forward.h"

#include "kernels.h"

namespace {

// A part of each row, whose partition is known (or, with PARTITION, grows); the temperature is one for all.
template <Function function, class T>
bool parts(const Rows& r) {
    Rate<T> rate(*r.temperature);
    Inverse<T> inverse(*r.temperature);
    for (ptrdiff_t i = r.first; i < r.first + r.count; ++i) {
        auto x = static_cast<const T*>(r.x) + i * r.n;
        auto y = static_cast<T*>(r.y) + i * r.n;
        Partition& p = r.partition[i];
        if constexpr (function == PARTITION) add_to(p, x, r.n, Shift<T>(static_cast<T>(p.max), rate), rate, r.threads);
        else if constexpr (function == SOFTMAX_PART) softmax_part(x, y, r.n, p, rate, r.threads);
        else log_softmax_part(x, y, r.n, p, rate, inverse, r.threads);
    }
    return false;
}

}  // namespace

namespace FASTSOFTMAX_ISA {

#define FORWARD(f) {rows<f, float>, rows<f, double>, half_rows<f, Float16>, half_rows<f, BFloat16>}
const Kernel softmax_kernels[TYPES] = FORWARD(SOFTMAX);
const Kernel log_softmax_kernels[TYPES] = FORWARD(LOG_SOFTMAX);
const Kernel logsumexp_kernels[TYPES] = FORWARD(LOGSUMEXP);
const Kernel partition_kernels[TYPES] = {parts<PARTITION, float>, parts<PARTITION, double>};
const Kernel softmax_part_kernels[TYPES] = {parts<SOFTMAX_PART, float>, parts<SOFTMAX_PART, double>};
const Kernel log_softmax_part_kernels[TYPES] = {parts<LOG_SOFTMAX_PART, float>, parts<LOG_SOFTMAX_PART, double>};

}  // namespace FASTSOFTMAX_ISA
