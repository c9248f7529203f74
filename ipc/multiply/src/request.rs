//! One request and its answer: `A B` is the product, `A OP B` has OP one of `+ - * /`.

/// The server sends this line for every whole request, before the result, as the ancestor does.
pub const ACKNOWLEDGED: &str = "Data received";

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Neither `A B` nor `A OP B`, with one space between the words.
    Shape,
    /// A word that should be a number is not one.
    Number,
    /// The result, or a number of the request, is larger than the largest double.
    Overflow,
    /// Division by zero.
    DivideByZero,
    /// More bytes than a message may have. This ends the session: the beginning of the next message
    /// is not known.
    TooLong,
    /// A deadline has passed. This ends the session.
    Timeout,
    /// The server has as many clients as it accepts. This ends the session.
    Busy,
}

impl Rejection {
    /// The error line.
    pub fn text(self) -> &'static str {
        match self {
            Rejection::Shape => "ERR two numbers expected",
            Rejection::Number => "ERR number expected",
            Rejection::Overflow => "ERR overflow",
            Rejection::DivideByZero => "ERR divide by zero",
            Rejection::TooLong => "ERR line too long",
            Rejection::Timeout => "ERR timeout",
            Rejection::Busy => "ERR busy",
        }
    }
}

/// The result as text: `50.0`, with as many digits as are needed to parse the same double again.
pub fn answer(message: &[u8]) -> String {
    match evaluate(message) {
        Ok(result) => format!("{result:?}"),
        Err(why) => why.text().to_owned(),
    }
}

/// Parses a request and calculates its result.
///
/// # Errors
/// [`Rejection::Shape`], [`Rejection::Number`], [`Rejection::Overflow`] or
/// [`Rejection::DivideByZero`].
pub fn evaluate(message: &[u8]) -> Result<f64, Rejection> {
    // telnet ends a line with CR LF.
    let message = message.strip_suffix(b"\r").unwrap_or(message);
    let mut words = message.split(|byte| *byte == b' ');
    let (a, op, b) = match (words.next(), words.next(), words.next(), words.next()) {
        (Some(a), Some(b), None, None) => (a, b'*', b),
        (Some(a), Some([op @ (b'+' | b'-' | b'*' | b'/')]), Some(b), None) => (a, *op, b),
        _ => return Err(Rejection::Shape),
    };
    if a.is_empty() || b.is_empty() {
        return Err(Rejection::Shape);
    }
    let (a, b) = (number(a)?, number(b)?);
    let result = match op {
        b'+' => a + b,
        b'-' => a - b,
        b'/' if b == 0.0 => return Err(Rejection::DivideByZero),
        b'/' => a / b,
        _ => a * b,
    };
    if result.is_finite() { Ok(result) } else { Err(Rejection::Overflow) }
}

/// Decimal digits with an optional minus, point and exponent. Rust's `parse` also accepts `+6`,
/// `nan` and `infinity`.
fn number(word: &[u8]) -> Result<f64, Rejection> {
    let decimal =
        |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e' | b'E');
    if word.starts_with(b"+") || !word.iter().all(decimal) {
        return Err(Rejection::Number);
    }
    let text = str::from_utf8(word).map_err(|_| Rejection::Number)?;
    let value: f64 = text.parse().map_err(|_| Rejection::Number)?;
    if value.is_finite() { Ok(value) } else { Err(Rejection::Overflow) }
}
