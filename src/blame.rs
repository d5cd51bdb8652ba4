//! Whose fault an error of a backend is, in one table for all backends: the item's, or the backend's.
//!
//! An item that can never be taken, wherever and whenever, goes to the dead letters with its cause, so that it does not hold up
//! the others. Everything else is the backend's: it is away, full, damaged, or does not let us in. Then the pipeline holds, and
//! no checkpoint passes what is not recorded; it goes on by itself when somebody has mended that.
//!
//! What no row names is the backend's: holding loses nothing, and is seen.

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Backend {
    /// The file of anomalies; codes are SQLite's result codes.
    Sqlite,
    /// The tables of anomalies; codes are the service's.
    DynamoDb,
    /// The bus; codes are of a whole request or of one entry.
    EventBridge,
    /// The dead-letter queue; codes are of a whole request or of one entry.
    Sqs,
    /// The shared store of incidents; codes are what an error reply begins with, or the client's own words.
    Redis,
}

/// Whose fault it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blame {
    /// The item's: it will never be taken. It goes to the dead letters.
    Item,
    /// The backend's: it is held and tried again, however long that takes.
    Backend,
}

/// One kind of error.
#[derive(Debug)]
struct Row {
    backend: Backend,
    code: &'static str,
    /// What the message must have in it, in lower case; empty for any.
    says: &'static str,
    blame: Blame,
}

const fn row(backend: Backend, code: &'static str, says: &'static str, blame: Blame) -> Row {
    Row { backend, code, says, blame }
}

use Backend::{DynamoDb, EventBridge, Redis, Sqlite, Sqs};
use Blame::Item;

/// The rows in order; the first that fits decides.
const TABLE: &[Row] = &[
    // SQLite result codes (sqlite.org/rescode.html).
    row(Sqlite, "SQLITE_TOOBIG", "", Item),
    row(Sqlite, "SQLITE_CONSTRAINT", "", Item),
    row(Sqlite, "SQLITE_MISMATCH", "", Item),
    // A row or a value that cannot be turned into what it stands for, before or after SQLite has seen it.
    row(Sqlite, "conversion", "", Item),
    row(Sqlite, "SQLITE_ERROR", "", Blame::Backend), // a table is missing
    row(Sqlite, "SQLITE_INTERNAL", "", Blame::Backend),
    row(Sqlite, "SQLITE_PERM", "", Blame::Backend),
    row(Sqlite, "SQLITE_ABORT", "", Blame::Backend),
    row(Sqlite, "SQLITE_BUSY", "", Blame::Backend),
    row(Sqlite, "SQLITE_LOCKED", "", Blame::Backend),
    row(Sqlite, "SQLITE_NOMEM", "", Blame::Backend),
    row(Sqlite, "SQLITE_READONLY", "", Blame::Backend),
    row(Sqlite, "SQLITE_INTERRUPT", "", Blame::Backend),
    row(Sqlite, "SQLITE_IOERR", "", Blame::Backend),
    row(Sqlite, "SQLITE_CORRUPT", "", Blame::Backend),
    row(Sqlite, "SQLITE_NOTFOUND", "", Blame::Backend),
    row(Sqlite, "SQLITE_FULL", "", Blame::Backend),
    row(Sqlite, "SQLITE_CANTOPEN", "", Blame::Backend),
    row(Sqlite, "SQLITE_PROTOCOL", "", Blame::Backend),
    row(Sqlite, "SQLITE_SCHEMA", "", Blame::Backend),
    row(Sqlite, "SQLITE_MISUSE", "", Blame::Backend),
    row(Sqlite, "SQLITE_NOLFS", "", Blame::Backend),
    row(Sqlite, "SQLITE_AUTH", "", Blame::Backend),
    row(Sqlite, "SQLITE_RANGE", "", Blame::Backend),
    row(Sqlite, "SQLITE_NOTADB", "", Blame::Backend),
    // DynamoDB (API reference, "Common Errors" and those of each operation). The same code says that an item is too large and
    // that a table has other keys than ours.
    row(DynamoDb, "ValidationException", "item size", Item),
    row(DynamoDb, "ValidationException", "maximum allowed size", Item),
    row(DynamoDb, "ItemCollectionSizeLimitExceededException", "", Item),
    row(DynamoDb, "ValidationException", "", Blame::Backend),
    row(DynamoDb, "AccessDeniedException", "", Blame::Backend),
    row(DynamoDb, "ConditionalCheckFailedException", "", Blame::Backend),
    row(DynamoDb, "ExpiredTokenException", "", Blame::Backend),
    row(DynamoDb, "ExpiredToken", "", Blame::Backend),
    row(DynamoDb, "IncompleteSignature", "", Blame::Backend),
    row(DynamoDb, "IncompleteSignatureException", "", Blame::Backend),
    row(DynamoDb, "InternalServerError", "", Blame::Backend),
    row(DynamoDb, "InvalidClientTokenId", "", Blame::Backend),
    row(DynamoDb, "InvalidSignatureException", "", Blame::Backend),
    row(DynamoDb, "LimitExceededException", "", Blame::Backend),
    row(DynamoDb, "MissingAuthenticationToken", "", Blame::Backend),
    row(DynamoDb, "MissingAuthenticationTokenException", "", Blame::Backend),
    row(DynamoDb, "OptInRequired", "", Blame::Backend),
    row(DynamoDb, "ProvisionedThroughputExceededException", "", Blame::Backend),
    row(DynamoDb, "ReplicatedWriteConflictException", "", Blame::Backend),
    row(DynamoDb, "RequestExpired", "", Blame::Backend),
    row(DynamoDb, "RequestLimitExceeded", "", Blame::Backend),
    row(DynamoDb, "ResourceNotFoundException", "", Blame::Backend),
    row(DynamoDb, "SerializationException", "", Blame::Backend),
    row(DynamoDb, "ServiceUnavailable", "", Blame::Backend),
    row(DynamoDb, "ThrottlingException", "", Blame::Backend),
    row(DynamoDb, "TransactionConflictException", "", Blame::Backend),
    row(DynamoDb, "UnrecognizedClientException", "", Blame::Backend),
    // A row that was read and is not what it stands for.
    row(DynamoDb, "conversion", "", Item),
    // EventBridge (API reference, PutEvents and PutEventsResultEntry).
    row(EventBridge, "MalformedDetail", "", Item),
    row(EventBridge, "InvalidArgument", "", Item),
    row(EventBridge, "ValidationException", "size", Item),
    row(EventBridge, "ValidationException", "", Blame::Backend),
    row(EventBridge, "AccessDeniedException", "", Blame::Backend),
    row(EventBridge, "EndpointNotFoundException", "", Blame::Backend),
    row(EventBridge, "ExpiredTokenException", "", Blame::Backend),
    row(EventBridge, "ExpiredToken", "", Blame::Backend),
    row(EventBridge, "IncompleteSignature", "", Blame::Backend),
    row(EventBridge, "InternalException", "", Blame::Backend),
    row(EventBridge, "InternalFailure", "", Blame::Backend),
    row(EventBridge, "InvalidAccountIdException", "", Blame::Backend),
    row(EventBridge, "InvalidSignatureException", "", Blame::Backend),
    row(EventBridge, "LimitExceededException", "", Blame::Backend),
    row(EventBridge, "NotAuthorizedForDetailTypeException", "", Blame::Backend),
    row(EventBridge, "NotAuthorizedForSourceException", "", Blame::Backend),
    row(EventBridge, "RedactionFailure", "", Blame::Backend),
    row(EventBridge, "ResourceNotFoundException", "", Blame::Backend),
    row(EventBridge, "ServiceUnavailable", "", Blame::Backend),
    row(EventBridge, "ThrottlingException", "", Blame::Backend),
    row(EventBridge, "UnrecognizedClientException", "", Blame::Backend),
    // SQS (API reference, SendMessageBatch and "Common Errors"); it names some codes in two ways.
    row(Sqs, "InvalidMessageContents", "", Item),
    row(Sqs, "MessageTooLong", "", Item),
    row(Sqs, "BatchRequestTooLong", "", Item),
    row(Sqs, "AWS.SimpleQueueService.BatchRequestTooLong", "", Item),
    row(Sqs, "InvalidParameterValue", "must be shorter than", Item),
    row(Sqs, "InvalidParameterValue", "", Blame::Backend),
    row(Sqs, "AccessDenied", "", Blame::Backend),
    row(Sqs, "AccessDeniedException", "", Blame::Backend),
    row(Sqs, "AWS.SimpleQueueService.NonExistentQueue", "", Blame::Backend),
    row(Sqs, "ExpiredToken", "", Blame::Backend),
    row(Sqs, "ExpiredTokenException", "", Blame::Backend),
    row(Sqs, "InternalError", "", Blame::Backend),
    row(Sqs, "InternalFailure", "", Blame::Backend),
    row(Sqs, "InvalidAddress", "", Blame::Backend),
    row(Sqs, "InvalidClientTokenId", "", Blame::Backend),
    row(Sqs, "InvalidSecurity", "", Blame::Backend),
    row(Sqs, "InvalidSignatureException", "", Blame::Backend),
    row(Sqs, "KmsAccessDenied", "", Blame::Backend),
    row(Sqs, "KmsDisabled", "", Blame::Backend),
    row(Sqs, "KmsInvalidState", "", Blame::Backend),
    row(Sqs, "KmsNotFound", "", Blame::Backend),
    row(Sqs, "KmsOptInRequired", "", Blame::Backend),
    row(Sqs, "KmsThrottled", "", Blame::Backend),
    row(Sqs, "OverLimit", "", Blame::Backend),
    row(Sqs, "QueueDoesNotExist", "", Blame::Backend),
    row(Sqs, "RequestThrottled", "", Blame::Backend),
    row(Sqs, "ServiceUnavailable", "", Blame::Backend),
    row(Sqs, "ThrottlingException", "", Blame::Backend),
    row(Sqs, "UnrecognizedClientException", "", Blame::Backend),
    row(Sqs, "UnsupportedOperation", "", Blame::Backend),
    // Redis replies, and what the client says. Findings are small and plain: none is refused for its own sake. While Redis does
    // not do what it is asked, the task correlates by itself.
    row(Redis, "CLUSTERDOWN", "", Blame::Backend),
    row(Redis, "LOADING", "", Blame::Backend),
    row(Redis, "MASTERDOWN", "", Blame::Backend),
    row(Redis, "MISCONF", "", Blame::Backend),
    row(Redis, "NOAUTH", "", Blame::Backend),
    row(Redis, "NOPERM", "", Blame::Backend),
    row(Redis, "NOREPLICAS", "", Blame::Backend),
    row(Redis, "NOSCRIPT", "", Blame::Backend),
    row(Redis, "OOM", "", Blame::Backend),
    row(Redis, "READONLY", "", Blame::Backend),
    row(Redis, "WRONGPASS", "", Blame::Backend),
    row(Redis, "WRONGTYPE", "", Blame::Backend),
    row(Redis, "authentication", "", Blame::Backend),
    row(Redis, "configuration", "", Blame::Backend),
];

/// Whose fault an error is, by its code and message.
pub fn blame(backend: Backend, code: &str, message: &str) -> Blame {
    let message = message.to_ascii_lowercase();
    let fits = |row: &&Row| row.backend == backend && row.code == code && message.contains(row.says);
    TABLE.iter().find(fits).map_or(Blame::Backend, |row| row.blame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_decides_what_it_names() {
        for (at, row) in TABLE.iter().enumerate() {
            let message = format!("one or more parameter values were invalid: {} (400)", row.says.to_uppercase());
            assert_eq!(blame(row.backend, row.code, &message), row.blame, "{row:?}");
            let hidden = |before: &&Row| {
                before.backend == row.backend && before.code == row.code && row.says.contains(before.says)
            };
            assert!(!TABLE[..at].iter().any(|before| hidden(&before)), "an earlier row hides {row:?}");
        }
    }

    #[test]
    fn only_what_an_item_is_to_blame_for_lets_the_others_pass() {
        // By name, so that a row that changes sides is seen.
        let items: Vec<(Backend, &str, &str)> =
            TABLE.iter().filter(|row| row.blame == Item).map(|row| (row.backend, row.code, row.says)).collect();
        let expected = [
            (Sqlite, "SQLITE_TOOBIG", ""),
            (Sqlite, "SQLITE_CONSTRAINT", ""),
            (Sqlite, "SQLITE_MISMATCH", ""),
            (Sqlite, "conversion", ""),
            (DynamoDb, "ValidationException", "item size"),
            (DynamoDb, "ValidationException", "maximum allowed size"),
            (DynamoDb, "ItemCollectionSizeLimitExceededException", ""),
            (DynamoDb, "conversion", ""),
            (EventBridge, "MalformedDetail", ""),
            (EventBridge, "InvalidArgument", ""),
            (EventBridge, "ValidationException", "size"),
            (Sqs, "InvalidMessageContents", ""),
            (Sqs, "MessageTooLong", ""),
            (Sqs, "BatchRequestTooLong", ""),
            (Sqs, "AWS.SimpleQueueService.BatchRequestTooLong", ""),
            (Sqs, "InvalidParameterValue", "must be shorter than"),
        ];
        assert_eq!(items, expected);
    }

    #[test]
    fn what_nobody_has_heard_of_is_held() {
        for backend in [Sqlite, DynamoDb, EventBridge, Sqs, Redis] {
            for code in ["", "TeapotException", "SQLITE_TOOBIG?"] {
                assert_eq!(blame(backend, code, "item size"), Blame::Backend, "{backend:?} {code}");
            }
        }
    }
}
