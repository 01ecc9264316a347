/* The way from one observation to the next, and from one element of a row to the next, over any strides. */
#ifndef LNORM_WALK_H
#define LNORM_WALK_H

#include "kernels.h"

typedef struct {
    const lnorm_job *job;
    char *at[LNORM_OPERANDS]; /* the operands' rows for the observation at hand */
    ptrdiff_t index[LNORM_MAXDIMS];
} lnorm_walk;

static inline void lnorm_walk_to(lnorm_walk *walk, const lnorm_job *job, ptrdiff_t observation)
{
    walk->job = job;
    for (int k = 0; k < LNORM_OPERANDS; k++)
        walk->at[k] = job->op[k].data;
    for (int d = job->outer_ndim - 1; d >= 0; d--) {
        walk->index[d] = observation ? observation % job->outer_shape[d] : 0;
        observation = observation ? observation / job->outer_shape[d] : 0;
        for (int k = 0; k < LNORM_OPERANDS && walk->index[d]; k++)
            walk->at[k] += walk->index[d] * job->op[k].outer[d];
    }
}

/* Observations to the end of the last outer dimension. */
static inline ptrdiff_t lnorm_walk_left(const lnorm_walk *walk)
{
    const int last = walk->job->outer_ndim - 1;
    return last < 0 ? 1 : walk->job->outer_shape[last] - walk->index[last];
}

/* Goes on by a count of observations, at most those that are left. */
static inline void lnorm_walk_on(lnorm_walk *walk, ptrdiff_t count)
{
    const lnorm_job *job = walk->job;
    for (int d = job->outer_ndim - 1; d >= 0; d--) {
        for (int k = 0; k < LNORM_OPERANDS; k++)
            walk->at[k] += count * job->op[k].outer[d];
        walk->index[d] += count;
        if (walk->index[d] < job->outer_shape[d])
            return;
        for (int k = 0; k < LNORM_OPERANDS; k++)
            walk->at[k] -= walk->index[d] * job->op[k].outer[d];
        walk->index[d] = 0;
        count = 1;
    }
}

/* The same within a row, for one operand. */
typedef struct {
    const lnorm_job *job;
    const ptrdiff_t *stride;
    ptrdiff_t at, index[LNORM_MAXDIMS];
} lnorm_steps;

static inline void lnorm_steps_to(lnorm_steps *steps, const lnorm_job *job, const lnorm_operand *op, ptrdiff_t element)
{
    steps->job = job;
    steps->stride = op->inner;
    steps->at = 0;
    for (int d = job->inner_ndim - 1; d >= 0; d--) {
        steps->index[d] = element % job->inner_shape[d];
        element /= job->inner_shape[d];
        steps->at += steps->index[d] * op->inner[d];
    }
}

/* Elements to the end of the last inner dimension, and the bytes between them. */
static inline ptrdiff_t lnorm_steps_left(const lnorm_steps *steps, ptrdiff_t *stride)
{
    const int last = steps->job->inner_ndim - 1;
    *stride = last < 0 ? 0 : steps->stride[last];
    return last < 0 ? 1 : steps->job->inner_shape[last] - steps->index[last];
}

/* Goes on by a count of elements, at most those that are left. */
static inline void lnorm_steps_on(lnorm_steps *steps, ptrdiff_t count)
{
    for (int d = steps->job->inner_ndim - 1; d >= 0; d--) {
        steps->at += count * steps->stride[d];
        steps->index[d] += count;
        if (steps->index[d] < steps->job->inner_shape[d])
            return;
        steps->at -= steps->index[d] * steps->stride[d];
        steps->index[d] = 0;
        count = 1;
    }
}

#endif
