//! One request, and what it is answered: `A B` is the product, `A OP B` with OP one of `+ - * /`.

/// Sent for every whole request before its result, as the ancestor does.
pub const ACKNOWLEDGED: &str = "Data received";

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not `A B` and not `A OP B`, with one space between.
    Shape,
    /// What stands in a number's place is none.
    Number,
    /// The result, or a number of the request, is beyond the largest a double holds.
    Overflow,
    /// Division by zero.
    DivideByZero,
    /// More bytes than a message may have. The end of the conversation: where the next one begins is not known.
    TooLong,
    /// A deadline passed. The end of the conversation.
    Timeout,
    /// As many clients as the server takes. The end of the conversation.
    Busy,
}

impl Refusal {
    /// What the client is told.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::Shape => "ERR two numbers expected",
            Refusal::Number => "ERR number expected",
            Refusal::Overflow => "ERR overflow",
            Refusal::DivideByZero => "ERR divide by zero",
            Refusal::TooLong => "ERR line too long",
            Refusal::Timeout => "ERR timeout",
            Refusal::Busy => "ERR busy",
        }
    }
}

/// The result in words: `50.0`, with as many digits as are needed to read the same double again.
pub fn answer(message: &[u8]) -> String {
    match evaluate(message) {
        Ok(result) => format!("{result:?}"),
        Err(why) => why.text().to_owned(),
    }
}

/// Reads a request and calculates.
///
/// # Errors
/// [`Refusal::Shape`], [`Refusal::Number`], [`Refusal::Overflow`] or [`Refusal::DivideByZero`].
pub fn evaluate(message: &[u8]) -> Result<f64, Refusal> {
    // A telnet user's CR.
    let message = message.strip_suffix(b"\r").unwrap_or(message);
    let mut words = message.split(|byte| *byte == b' ');
    let (a, op, b) = match (words.next(), words.next(), words.next(), words.next()) {
        (Some(a), Some(b), None, None) => (a, b'*', b),
        (Some(a), Some([op @ (b'+' | b'-' | b'*' | b'/')]), Some(b), None) => (a, *op, b),
        _ => return Err(Refusal::Shape),
    };
    if a.is_empty() || b.is_empty() {
        return Err(Refusal::Shape);
    }
    let (a, b) = (number(a)?, number(b)?);
    let result = match op {
        b'+' => a + b,
        b'-' => a - b,
        b'/' if b == 0.0 => return Err(Refusal::DivideByZero),
        b'/' => a / b,
        _ => a * b,
    };
    if result.is_finite() { Ok(result) } else { Err(Refusal::Overflow) }
}

/// Decimal digits, with a point, an exponent and a minus where wanted. Rust's `parse` would take `+6`, `nan` and
/// `infinity` as well.
fn number(word: &[u8]) -> Result<f64, Refusal> {
    let decimal = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e' | b'E');
    if word.starts_with(b"+") || !word.iter().all(decimal) {
        return Err(Refusal::Number);
    }
    let text = str::from_utf8(word).map_err(|_| Refusal::Number)?;
    let value: f64 = text.parse().map_err(|_| Refusal::Number)?;
    if value.is_finite() { Ok(value) } else { Err(Refusal::Overflow) }
}
