/*-------------------------------------------------------------------------
 *
 * module.c
 *		Makes the library loadable: the only file that knows the server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "fmgr.h"

#include "evpg.h"

EVPG_MODULE;
