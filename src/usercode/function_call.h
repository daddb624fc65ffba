/*-------------------------------------------------------------------------
 *
 * function_call.h
 *		Calls of user functions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_FUNCTION_CALL_H
#define EVPG_FUNCTION_CALL_H

#include "usercode/function.h"

extern int	EvpgFunctionCall(EvpgFunction *function, const Datum *args, bool read_only, int max_rows,
							 Datum **rows, bool **row_nulls);
extern int	EvpgFunctionCallPure(EvpgFunction *function, const Datum *args, Datum **rows, bool **row_nulls);

#endif							/* EVPG_FUNCTION_CALL_H */
