use super::*;
use crate::publish::local::prepare;

const DAY: i64 = 86_400;

fn store(rows: i64, written: impl Fn(i64) -> i64) -> Connection {
    let connection = prepare(Connection::open_in_memory().unwrap()).unwrap();
    for row in 0..rows {
        let id = format!("{row:04}");
        let anomaly = "INSERT INTO anomalies
            (id, detected, threat, severity, status, actor, first_seen, last_seen, updates, announced, revision, body, written)
            VALUES (?1, 5, 'tor', 1, 'open', 'many', 1, 2, 1, 1, ?2, '{}', ?3)";
        connection.execute(anomaly, params![id, row, written(row)]).unwrap();
        connection.execute("INSERT INTO addresses VALUES ('10.0.0.1', 5, ?1, 'tor', 1, 'open')", [&id]).unwrap();
        let silence = "INSERT INTO silences (id, actor, last_seen, body, written) VALUES (?1, 'many', 1, '{}', ?2)";
        connection.execute(silence, params![id, written(row)]).unwrap();
        let episode = "INSERT INTO episodes (key, body, written) VALUES (?1, '{}', ?2)";
        connection.execute(episode, params![id, written(row)]).unwrap();
        let verdict = "INSERT INTO feedback (id, by, verdict, note, at) VALUES (?1, 'ada', 'true_positive', '', ?2)";
        connection.execute(verdict, params![id, written(row)]).unwrap();
    }
    connection
}

fn left(connection: &Connection) -> Vec<i64> {
    ["anomalies", "addresses", "silences", "episodes", "feedback"]
        .iter()
        .map(|table| connection.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |row| row.get(0)).unwrap())
        .collect()
}

fn retention(days: i64) -> Retention {
    Retention::new(SignedDuration::from_secs(days * DAY))
}

#[test]
fn what_was_written_before_the_retention_goes_and_the_rest_stays_with_all_that_belongs_to_it() {
    let now = now();
    let mut connection = store(10, |row| now - row * DAY - 60);
    let removed = retention(5).remove(&mut connection, now).unwrap();
    assert_eq!((removed, left(&connection)), (5, vec![5; 5]));
    assert_eq!(retention(5).remove(&mut connection, now).unwrap(), 0);
}

#[test]
fn a_write_removes_a_bounded_number_and_the_next_goes_on() {
    let now = now();
    let mut connection = store(3 * BATCH as i64, |_| now - 2 * DAY);
    let mut retention = retention(1);
    retention.remove_some(&mut connection);
    assert_eq!(left(&connection), [2 * BATCH as i64; 5]);
    for _ in 0..3 {
        retention.remove_some(&mut connection);
    }
    assert_eq!(left(&connection), [0; 5]);
}

#[test]
fn what_is_not_announced_stays_however_old_and_no_retention_keeps_everything() {
    let now = now();
    let mut connection = store(3, |_| now - 2 * DAY);
    connection.execute("UPDATE anomalies SET announced = 0 WHERE id = '0001'", []).unwrap();
    retention(0).remove_some(&mut connection);
    assert_eq!(left(&connection), [3; 5]);
    retention(1).remove_some(&mut connection);
    assert_eq!(left(&connection), [1, 1, 0, 0, 0]);
}

#[test]
fn rows_without_a_date_are_as_old_as_the_dates_are() {
    let now = now();
    let mut connection = store(3, |_| 0);
    assert_eq!(retention(1).remove(&mut connection, now + DAY / 2).unwrap(), 3, "verdicts have their own date");
    assert_eq!(left(&connection), [3, 3, 3, 3, 0]);
    retention(1).remove(&mut connection, now + 2 * DAY).unwrap();
    assert_eq!(left(&connection), [0; 5]);
}
