/*-------------------------------------------------------------------------
 *
 * expression.h
 *		What the value of an expression depends on.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_EXPRESSION_H
#define EVPG_EXPRESSION_H

#include "nodes/primnodes.h"

typedef struct EvpgExpressionTraits
{
	bool		can_be_kept;	/* its state serves many calls */
	bool		is_pure;		/* by its arguments alone: not by settings,
								 * tables, or by whose expression it is */
} EvpgExpressionTraits;

extern void EvpgExpressionExamine(Expr *expression, EvpgExpressionTraits *traits);

#endif							/* EVPG_EXPRESSION_H */
