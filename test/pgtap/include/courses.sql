-- courses.sql: an aggregate with a boundary: students subscribe to courses, a course has a capacity, a student has two
-- courses at most.  The stream is the student's, or the course's for its definition.  Run after setup.sql.

CREATE FUNCTION test.course_boundary(command evpg.command) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT evpg_condition(tags => ARRAY['course:' || (command.data->>'course')]) ||
         CASE WHEN command.command_type = 'Subscribe' THEN evpg_condition(tags => ARRAY['student:' || command.aggregate_id])
              ELSE '[]' END $$;
CREATE FUNCTION test.course_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
DECLARE
  course text := command.data->>'course';
BEGIN
  IF command.command_type = 'Define' THEN
    RETURN evpg_event('Defined', command.data, tags => ARRAY['course:' || course]);
  ELSIF state->'capacities'->course IS NULL THEN
    PERFORM evpg_reject('no_course');
  ELSIF state->'taken' ? (course || ' ' || command.aggregate_id) THEN
    RETURN NULL;
  ELSIF (SELECT count(*) FROM jsonb_array_elements_text(state->'taken') t WHERE t LIKE course || ' %')
        >= (state->'capacities'->>course)::int THEN
    PERFORM evpg_reject('full', detail => state->'taken');
  ELSIF (SELECT count(*) FROM jsonb_array_elements_text(state->'taken') t
          WHERE t LIKE '% ' || command.aggregate_id) >= 2 THEN
    PERFORM evpg_reject('busy', detail => state->'taken');
  END IF;
  RETURN evpg_event('Subscribed', jsonb_build_object('course', course, 'student', command.aggregate_id),
    tags => ARRAY['course:' || course, 'student:' || command.aggregate_id]);
END $$;
-- the order of the events shows in the state
CREATE FUNCTION test.course_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT CASE event.type
    WHEN 'Defined' THEN jsonb_set(state, ARRAY['capacities', event.data->>'course'], event.data->'capacity')
    WHEN 'Subscribed' THEN jsonb_set(state, '{taken}',
      (state->'taken') || to_jsonb(concat_ws(' ', event.data->>'course', event.data->>'student')))
    ELSE state END $$;
