//! Reads conditions, from what binds loosest (`||`) to what binds tightest (fields and places).

use super::{ExpressionError, Function, MAX_DEPTH, Node, Operator, Value};

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Number(f64),
    Text(String),
    Word(String),
    Sign(&'static str),
    End,
}

/// Signs, those that begin like others before these.
const SIGNS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "+", "-", "*", "/", "%", "(", ")", "[", "]", "{", "}", ",", ".",
    "#", "=",
];

struct Parser<'t> {
    text: &'t str,
    /// Each with where it begins, in bytes.
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
    /// Inside `all` or `any`, where `#` means something.
    in_items: usize,
}

/// Reads one condition.
pub(super) fn parse(text: &str) -> Result<Node, ExpressionError> {
    let mut parser = Parser { text, tokens: tokens(text)?, at: 0, depth: 0, in_items: 0 };
    let node = parser.either()?;
    match parser.token() {
        Token::End => Ok(node),
        Token::Sign("=") => Err(parser.fault("equality is written ==")),
        Token::Number(_) | Token::Text(_) | Token::Word(_) | Token::Sign(_) => {
            Err(parser.fault("an operator or the end is expected"))
        }
    }
}

fn fault_at(text: &str, bytes: usize, why: impl Into<String>) -> ExpressionError {
    let at = text.char_indices().take_while(|(start, _)| *start < bytes).count() + 1;
    ExpressionError::Syntax { text: text.chars().take(200).collect(), at, why: why.into() }
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, ExpressionError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (token, length) = if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        } else if first.is_ascii_digit() {
            number(rest).ok_or_else(|| fault_at(text, at, "a number is expected, as 0.95"))?
        } else if first.is_ascii_alphabetic() || first == '_' {
            let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            (Token::Word(rest[..length].to_owned()), length)
        } else if first == '\'' || first == '"' {
            let inside = &rest[1..];
            let end = inside.find(first).ok_or_else(|| fault_at(text, at, "the end of the text is missing"))?;
            if inside[..end].contains('\\') {
                return Err(fault_at(text, at, "a text holds no \\"));
            }
            (Token::Text(inside[..end].to_owned()), end + 2)
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let sign = sign.ok_or_else(|| fault_at(text, at, format!("{first:?} means nothing here")))?;
            (Token::Sign(sign), sign.len())
        };
        tokens.push((at, token));
        at += length;
    }
    tokens.push((text.len(), Token::End));
    Ok(tokens)
}

fn number(rest: &str) -> Option<(Token, usize)> {
    let mut length = 0;
    let bytes = rest.as_bytes();
    while let Some(byte) = bytes.get(length) {
        let sign_of_exponent = matches!(byte, b'+' | b'-') && matches!(bytes[length - 1], b'e' | b'E');
        if byte.is_ascii_alphanumeric() || *byte == b'.' || (length > 0 && sign_of_exponent) {
            length += 1;
        } else {
            break;
        }
    }
    rest[..length].parse().ok().map(|number| (Token::Number(number), length))
}

type Parsed = Result<Node, ExpressionError>;

impl Parser<'_> {
    fn token(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(_, token)| token)
    }

    fn fault(&self, why: impl Into<String>) -> ExpressionError {
        fault_at(self.text, self.tokens.get(self.at).map_or(self.text.len(), |(at, _)| *at), why)
    }

    fn takes(&mut self, wanted: &'static str) -> bool {
        let found = match self.token() {
            Token::Sign(sign) => *sign == wanted,
            Token::Word(word) => word == wanted,
            Token::Number(_) | Token::Text(_) | Token::End => false,
        };
        self.at += usize::from(found);
        found
    }

    fn expects(&mut self, wanted: &'static str) -> Result<(), ExpressionError> {
        if self.takes(wanted) { Ok(()) } else { Err(self.fault(format!("{wanted} is expected"))) }
    }

    /// One level deeper, if that is allowed.
    fn deeper(&mut self, inside: impl FnOnce(&mut Self) -> Parsed) -> Parsed {
        if self.depth == MAX_DEPTH {
            return Err(self.fault(format!("it is nested more than {MAX_DEPTH} deep")));
        }
        self.depth += 1;
        let node = inside(self);
        self.depth -= 1;
        node
    }

    fn either(&mut self) -> Parsed {
        self.deeper(|parser| {
            let mut left = parser.both()?;
            while parser.takes("||") || parser.takes("or") {
                left = Node::Either(Box::new(left), Box::new(parser.both()?));
            }
            Ok(left)
        })
    }

    fn both(&mut self) -> Parsed {
        let mut left = self.negated()?;
        while self.takes("&&") || self.takes("and") {
            left = Node::Both(Box::new(left), Box::new(self.negated()?));
        }
        Ok(left)
    }

    fn negated(&mut self) -> Parsed {
        if self.takes("not") {
            return self.deeper(|parser| Ok(Node::Not(Box::new(parser.negated()?))));
        }
        self.compared()
    }

    fn compared(&mut self) -> Parsed {
        let left = self.sum()?;
        for operator in [
            Operator::Equal,
            Operator::Differs,
            Operator::AtMost,
            Operator::AtLeast,
            Operator::Less,
            Operator::Greater,
            Operator::In,
        ] {
            if self.takes(operator.as_str()) {
                return Ok(Node::Pair(operator, Box::new(left), Box::new(self.sum()?)));
            }
        }
        Ok(left)
    }

    fn sum(&mut self) -> Parsed {
        self.chain(&[Operator::Plus, Operator::Minus], Self::product)
    }

    fn product(&mut self) -> Parsed {
        self.chain(&[Operator::Times, Operator::Over, Operator::Rest], Self::signed)
    }

    fn chain(&mut self, operators: &[Operator], next: fn(&mut Self) -> Parsed) -> Parsed {
        let mut left = next(self)?;
        while let Some(operator) = operators.iter().find(|operator| self.takes(operator.as_str())) {
            left = Node::Pair(*operator, Box::new(left), Box::new(next(self)?));
        }
        Ok(left)
    }

    fn signed(&mut self) -> Parsed {
        if self.takes("-") {
            return self.deeper(|parser| Ok(Node::Minus(Box::new(parser.signed()?))));
        }
        if self.takes("!") {
            return self.deeper(|parser| Ok(Node::Not(Box::new(parser.signed()?))));
        }
        let mut node = self.single()?;
        loop {
            if self.takes("[") {
                let place = self.either()?;
                self.expects("]")?;
                node = Node::Part(Box::new(node), Box::new(place));
            } else if self.takes(".") {
                let Token::Word(name) = self.token().clone() else {
                    return Err(self.fault("the name of a field is expected"));
                };
                self.at += 1;
                node = Node::Part(Box::new(node), Box::new(Node::Literal(Value::Text(name))));
            } else {
                return Ok(node);
            }
        }
    }

    fn single(&mut self) -> Parsed {
        if self.takes("(") {
            let node = self.either()?;
            self.expects(")")?;
            return Ok(node);
        }
        if self.takes("[") {
            return Ok(Node::List(self.listed("]", |parser, _| parser.either())?));
        }
        let node = match self.token().clone() {
            Token::Number(number) => Node::Literal(Value::Number(number)),
            Token::Text(text) => Node::Literal(Value::Text(text)),
            Token::Sign("#") if self.in_items > 0 => Node::Item,
            Token::Sign("#") => return Err(self.fault("# is the item that all(…) or any(…) looks at")),
            Token::Word(word) => match word.as_str() {
                "result" => Node::Answer,
                "true" | "false" => Node::Literal(Value::Flag(word == "true")),
                "nil" | "null" => Node::Literal(Value::Null),
                _ => return self.call(&word),
            },
            Token::Sign(_) | Token::End => return Err(self.fault("a value is expected, as result[0] or 0.95")),
        };
        self.at += 1;
        Ok(node)
    }

    fn call(&mut self, name: &str) -> Parsed {
        let Some((name, function, takes)) = Function::ALL.into_iter().find(|(known, ..)| *known == name) else {
            let known: Vec<&str> = Function::ALL.iter().map(|(name, ..)| *name).collect();
            return Err(self.fault(format!("result, true, false, nil or one of {}(…) is expected", known.join(", "))));
        };
        self.at += 1;
        self.expects("(")?;
        let of_items = matches!(function, Function::All | Function::Any);
        let arguments = self.listed(")", |parser, at| {
            let is_predicate = of_items && at == 1;
            parser.in_items += usize::from(is_predicate);
            let braced = is_predicate && parser.takes("{");
            let node = parser.either()?;
            if braced {
                parser.expects("}")?;
            }
            parser.in_items -= usize::from(is_predicate);
            Ok(node)
        })?;
        if arguments.len() != takes {
            return Err(self.fault(format!("{name} takes {takes}, here are {}", arguments.len())));
        }
        Ok(Node::Call(function, arguments))
    }

    /// What stands between commas up to `end`.
    fn listed(
        &mut self,
        end: &'static str,
        item: impl Fn(&mut Self, usize) -> Parsed,
    ) -> Result<Vec<Node>, ExpressionError> {
        let mut items = Vec::new();
        while !self.takes(end) {
            if !items.is_empty() {
                self.expects(",")?;
            }
            items.push(item(self, items.len())?);
        }
        Ok(items)
    }
}
