//! What a user of the secured listeners may do, as `kafka-acls` is told it.

use std::str::FromStr;

/// One line of `kafka-acls --add`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaAcl {
    pub(crate) resource: KafkaResource,
    pub(crate) name: String,
    pub(crate) is_prefix: bool,
    pub(crate) operations: Vec<KafkaOperation>,
}

/// What is allowed to be used; numbers as in org.apache.kafka.common.resource.ResourceType.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KafkaResource {
    Topic = 2,
    Group = 3,
    TransactionalId = 5,
}

/// What is allowed to be done; numbers as in org.apache.kafka.common.acl.AclOperation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KafkaOperation {
    Read = 3,
    Write = 4,
    Create = 5,
    Describe = 8,
    DescribeConfigs = 10,
}

impl KafkaResource {
    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

impl KafkaOperation {
    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

/// Reads the part of the command's options that says what is granted, and passes over those that say to whom and where.
impl FromStr for KafkaAcl {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let (mut of, mut is_prefix, mut operations) = (None, false, Vec::new());
        while let Some(option) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{option} of what? {line}"));
            match option {
                "--topic" => of = Some((KafkaResource::Topic, value()?)),
                "--group" => of = Some((KafkaResource::Group, value()?)),
                "--transactional-id" => of = Some((KafkaResource::TransactionalId, value()?)),
                "--resource-pattern-type" => is_prefix = value()? == "prefixed",
                "--operation" => operations.push(match value()? {
                    "Read" => KafkaOperation::Read,
                    "Write" => KafkaOperation::Write,
                    "Create" => KafkaOperation::Create,
                    "Describe" => KafkaOperation::Describe,
                    "DescribeConfigs" => KafkaOperation::DescribeConfigs,
                    other => return Err(format!("the operation {other}: {line}")),
                }),
                "kafka-acls" | "--add" => {}
                "--bootstrap-server" | "--command-config" | "--allow-principal" => drop(value()?),
                other => return Err(format!("{other}: {line}")),
            }
        }
        let (resource, name) = of.ok_or_else(|| format!("on what? {line}"))?;
        Ok(Self { resource, name: name.to_owned(), is_prefix, operations })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_s_line_is_read_or_refused() {
        let line = "kafka-acls --bootstrap-server k:9092 --add --allow-principal User:r --operation Write \
                    --operation Read --topic a. --resource-pattern-type prefixed";
        let expected = KafkaAcl {
            resource: KafkaResource::Topic,
            name: "a.".to_owned(),
            is_prefix: true,
            operations: vec![KafkaOperation::Write, KafkaOperation::Read],
        };
        assert_eq!(line.parse(), Ok(expected));
        for wrong in ["--topic", "--operation Write", "--operation Fly --topic a", "--producer --topic a"] {
            wrong.parse::<KafkaAcl>().unwrap_err();
        }
    }
}
