/* The end of the backward pass: partial sums over blocks of observations become the gradient of the parameters. */
#include "walk.h"

/* two-sum: Knuth, TAOCP 2, 4.2.2 */
static inline void add(double *sum, double *rest, double b)
{
    const double a = *sum, t = a + b, z = t - a;
    *sum = t;
    *rest += (a - (t - z)) + (b - z);
}

void lnorm_add_partial(const lnorm_job *job, ptrdiff_t begin, ptrdiff_t end, const double *partial, double *total,
                       ptrdiff_t size, ptrdiff_t base)
{
    if (job->op[LNORM_GRAD].contiguous) {
        for (ptrdiff_t j = 0; j < end - begin; j++)
            add(total + (begin - base) + j, total + (begin - base) + size + j, partial[j]);
        return;
    }
    lnorm_steps steps;
    lnorm_steps_to(&steps, job, &job->op[LNORM_GRAD], begin);
    for (ptrdiff_t j = 0; j < end - begin; j++, lnorm_steps_on(&steps, 1))
        add(total + (steps.at - base), total + (steps.at - base) + size, partial[j]);
}
