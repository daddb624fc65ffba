/*-------------------------------------------------------------------------
 *
 * errors.h
 *		The one table of evpg's SQLSTATEs, class VE.
 *
 * docs/reference.md lists them for users.  Errors that PostgreSQL already has
 * a code for (a NULL argument, a missing privilege) use PostgreSQL's code.
 * A code is never given another meaning.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ERRORS_H
#define EVPG_ERRORS_H

#include "utils/elog.h"

#define EVPG_ERRCODE_VERSION_CONFLICT	MAKE_SQLSTATE('V', 'E', '0', '0', '1')
#define EVPG_ERRCODE_REJECTED			MAKE_SQLSTATE('V', 'E', '0', '0', '2')
#define EVPG_ERRCODE_UNKNOWN_AGGREGATE	MAKE_SQLSTATE('V', 'E', '0', '0', '3')
#define EVPG_ERRCODE_STREAM_NOT_FOUND	MAKE_SQLSTATE('V', 'E', '0', '0', '4')
#define EVPG_ERRCODE_COMMAND_ID_REUSED	MAKE_SQLSTATE('V', 'E', '0', '0', '5')
#define EVPG_ERRCODE_INVARIANT			MAKE_SQLSTATE('V', 'E', '0', '0', '6')
#define EVPG_ERRCODE_UNKNOWN_PROJECTION	MAKE_SQLSTATE('V', 'E', '0', '0', '7')
#define EVPG_ERRCODE_STATE_NOT_FOUND	MAKE_SQLSTATE('V', 'E', '0', '0', '8')
#define EVPG_ERRCODE_MODULE				MAKE_SQLSTATE('V', 'E', '0', '0', '9')
#define EVPG_ERRCODE_UNKNOWN_CONSUMER	MAKE_SQLSTATE('V', 'E', '0', '1', '0')
#define EVPG_ERRCODE_INTERCEPTED		MAKE_SQLSTATE('V', 'E', '0', '1', '1')
#define EVPG_ERRCODE_APPEND_ONLY		MAKE_SQLSTATE('V', 'E', '0', '1', '2')
#define EVPG_ERRCODE_CONDITION			MAKE_SQLSTATE('V', 'E', '0', '1', '3')
#define EVPG_ERRCODE_LIMIT				MAKE_SQLSTATE('V', 'E', '0', '1', '4')
#define EVPG_ERRCODE_WAIT_IN_WRITER		MAKE_SQLSTATE('V', 'E', '0', '1', '5')
#define EVPG_ERRCODE_OTHER_FILTER		MAKE_SQLSTATE('V', 'E', '0', '1', '6')
#define EVPG_ERRCODE_RESERVED_NAME		MAKE_SQLSTATE('V', 'E', '0', '1', '7')
#define EVPG_ERRCODE_UNKNOWN_COMMAND	MAKE_SQLSTATE('V', 'E', '0', '1', '8')
#define EVPG_ERRCODE_SCHEMA				MAKE_SQLSTATE('V', 'E', '0', '1', '9')
#define EVPG_ERRCODE_REENTERED			MAKE_SQLSTATE('V', 'E', '0', '2', '0')
#define EVPG_ERRCODE_TRANSITION			MAKE_SQLSTATE('V', 'E', '0', '2', '1')
#define EVPG_ERRCODE_UNKNOWN_TRANSLATOR	MAKE_SQLSTATE('V', 'E', '0', '2', '2')
#define EVPG_ERRCODE_SAGA_FAILED		MAKE_SQLSTATE('V', 'E', '0', '2', '3')
#define EVPG_ERRCODE_LEASE_LOST			MAKE_SQLSTATE('V', 'E', '0', '2', '4')

#endif							/* EVPG_ERRORS_H */
