//! The rights that `docs/operations.md` gives are enough, each role with its own and no others: central on a broker that
//! denies what is not allowed, with a user for each process.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use tidegate_tests::kafka::{self, Kafka};
use tidegate_tests::plant::{Options, Plant};
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::{ports, program, wait};

const DEADLINE: Duration = Duration::from_secs(120);
const PASSWORD: &str = "s3cret";
/// Users with the rights of one role, and one who has the rights that every process needs.
const LINK: &str = "linker";
const FANOUT: &str = "publisher";
const OTHERS: &str = "writer";
/// A user without any rights.
const STRANGER: &str = "stranger";
/// What central is called in the documentation.
const DOCUMENTED: &str = "User:central";

/// The documented commands, those of a role for its user only.
fn commands() -> anyhow::Result<String> {
    let page = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md"));
    let page = std::fs::read_to_string(page)?;
    let rights = page.split("## Rights (ACLs)").nth(1).context("the chapter")?;
    let block = rights.split("```\n").nth(1).context("its commands")?;
    let each = |users: &[&str]| {
        users.iter().map(|user| format!("User:{user}")).collect::<Vec<_>>().join(" --allow-principal ")
    };
    let mut lines = Vec::new();
    for part in block.split("\n\n") {
        let first = part.lines().next().unwrap_or_default();
        let users = match first {
            _ if first.starts_with("A=") => String::new(),
            "# every process" => each(&[LINK, FANOUT, OTHERS]),
            _ if first.starts_with("# role link") => each(&[LINK]),
            _ if first.starts_with("# role fanout") => each(&[FANOUT]),
            _ => anyhow::bail!("whose rights are these? {part}"),
        };
        lines.push(part.replace(DOCUMENTED, &users));
    }
    Ok(lines.join("\n"))
}

/// A broker that knows whoever comes by way of the second listener, and allows them nothing by default.
async fn broker(secure: &str) -> anyhow::Result<Kafka> {
    let listeners = format!("PLAINTEXT://127.0.0.1:{{port}},SECURE://{secure}");
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let settings = [
        ("listeners", &*format!("{listeners},CONTROLLER://127.0.0.1:{{controller-port}}")),
        ("advertised.listeners", &listeners),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_PLAINTEXT"),
        ("sasl.enabled.mechanisms", "SCRAM-SHA-512"),
        ("listener.name.secure.scram-sha-512.sasl.jaas.config", scram),
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
        // The broker itself, and this test.
        ("super.users", "User:ANONYMOUS"),
    ];
    let users = [LINK, FANOUT, OTHERS, STRANGER].map(|user| (user, PASSWORD));
    Kafka::start_own_with_users(&settings, &users).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_rights_are_enough_for_each_role() -> anyhow::Result<()> {
    let secure = ports::free().to_string();
    let kafka = broker(&secure).await?;
    kafka.run_acls(&commands()?)?;

    let of = |user: &str| Options {
        log: kafka::log_lines(&secure, "tidegate")
            + &format!(
                "\nsasl = {{ mechanism = \"SCRAM-SHA-512\", user = \"{user}\", password-file = \"password\" }}"
            ),
        ..simple::options()
    };
    let link = ports::free();
    let options =
        Options { roles: vec!["sink", "alerts", "api", "audit"], centrals: vec![link], ..of(OTHERS) };
    let mut plant = Plant::prepare(&options)?;
    std::fs::write(plant.path("password"), PASSWORD)?;
    plant.configure_central(&of(LINK), "link", &["link"], link, ports::free())?;
    plant.configure_central(&of(FANOUT), "fanout", &["fanout"], plant.link, ports::free())?;
    plant.configure_central(&of(STRANGER), "stranger", &["link"], ports::free(), ports::free())?;
    let logs = |plant: &Plant| {
        let of =
            |name: &str| format!("--- {name}\n{}\n", program::tail(&plant.path(&format!("{name}.log")), 40));
        plant.logs() + &["link", "fanout"].map(of).concat()
    };

    plant.start_central()?;
    let mut linking = plant.start_process("link")?;
    let _publishing = plant.start_process("fanout")?;
    plant.start_gateway()?;
    plant.central_ready().await.with_context(|| logs(&plant))?;
    plant.gateway_ready().await.with_context(|| logs(&plant))?;
    simple::send(&plant, "a", simple::payloads(0, 100, 20)).await?;
    plant.rows(STREAM, 100, DEADLINE).await.with_context(|| logs(&plant))?;
    // A claim over an earlier owner's transactions asks for more than the first one.
    linking.kill();
    let _linking = plant.start_process("link")?;
    simple::send(&plant, "b", simple::payloads(0, 100, 20)).await?;
    plant.rows(STREAM, 200, DEADLINE).await.with_context(|| logs(&plant))?;
    kafka.produce("tidegate.data", "of nobody\n")?;

    let seen = kafka.consume(&format!("tidegate.events.{STREAM}"), 200, &["key"])?;
    ensure!(seen.len() == 200, "{} events\n{}", seen.len(), logs(&plant));
    let kept = kafka.consume("tidegate.quarantine", 1, &[])?;
    ensure!(kept == ["of nobody"], "{kept:?}\n{}", logs(&plant));
    let balanced = wait::until_true("the audit has compared all", DEADLINE, async || {
        plant.central_metrics().await.is_ok_and(|m| m.sum("tidegate_audit_balanced", &[]) == 1.0)
    });
    balanced.await.with_context(|| logs(&plant))?;
    let said = logs(&plant).to_lowercase();
    ensure!(!said.contains("authoriz"), "{said}");

    let mut stranger = plant.start_process("stranger")?;
    let status = stranger.wait(DEADLINE)?;
    let said = stranger.log();
    ensure!(!status.success() && said.to_lowercase().contains("authoriz"), "{status}: {said}");
    println!("a user without rights: {said}");
    Ok(())
}
