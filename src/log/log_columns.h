/*-------------------------------------------------------------------------
 *
 * log_columns.h
 *		The columns of evpg.event_log, counted from 0, for the files that write and
 *		scan it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LOG_COLUMNS_H
#define EVPG_LOG_COLUMNS_H

/* Columns of evpg.event_log, see sql/evpg--1.0.sql. */
#define LOG_POSITION		0
#define LOG_STREAM_ID		1
#define LOG_VERSION			2
#define LOG_OCCURRED_AT		3
#define LOG_RECORDED_AT		4
#define LOG_EVENT_ID		5
#define LOG_SCHEMA_VERSION	6
#define LOG_TYPE			7
#define LOG_DATA			8
#define LOG_METADATA		9
#define LOG_TAGS			10
#define LOG_COMMAND_ID		11
#define LOG_CORRELATION_ID	12
#define LOG_CAUSATION_ID	13
#define LOG_ACTOR			14
#define LOG_SESSION_ROLE	15
#define LOG_NATTS			16

#endif							/* EVPG_LOG_COLUMNS_H */
