// The table of one instruction set, FASTSOFTMAX_ISA.
#include "kernels.h"

#define TEXT(isa) #isa
#define NAME(isa) TEXT(isa)

namespace FASTSOFTMAX_ISA {

const Kernels kernels = {
    NAME(FASTSOFTMAX_ISA),
    {
        softmax_kernels,
        log_softmax_kernels,
        logsumexp_kernels,
        softmax_vjp_kernels,
        softmax_vjp_derivative_kernels,
        softmax_jacobian_kernels,
        softmax_jacobian_diagonal_kernels,
        softmax_jacobian_eigenvalues_kernels,
        log_softmax_vjp_kernels,
        log_softmax_jvp_kernels,
        log_softmax_jacobian_kernels,
        partition_kernels,
        softmax_part_kernels,
        log_softmax_part_kernels,
        cross_entropy_kernels,
    },
};

}  // namespace FASTSOFTMAX_ISA
