//! Logging in, users, tokens, roles and access lists.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Allow, Endpoint, run};
use crate::access::{Access, Identity, Rule, Token, User};
use crate::answer::{Answer, Failure, nothing};
use crate::auth;
use crate::held;
use crate::random;
use crate::schema::{Param, split_list};
use crate::sim::{Call, Ticket, raw_text};

const ROLE: Param = Param::named("roleid", "pve-roleid");
const USER: Param = Param::named("userid", "pve-userid").max_len(64);
const TOKEN_ID: Param = Param::text("tokenid").matches("(?:[A-Za-z][A-Za-z0-9\\.\\-_]+)").path();
const TOKEN_PATH: &[Param] = &[USER.path(), TOKEN_ID];
const TOKEN_FACTS: &[Param] =
    &[Param::text("comment").opt(), Param::int("expire").min(0.0).opt(), Param::flag("privsep").opt()];

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("GET", "/access", Allow::All, run!(index)),
    Endpoint::new("GET", "/access/domains", Allow::All, run!(domains)),
    Endpoint::new("GET", "/access/ticket", Allow::All, run!(no_ticket)),
    Endpoint::new("POST", "/access/ticket", Allow::All, run!(login))
        .takes(&[&[
            Param::flag("new-format").opt(),
            Param::text("otp").opt(),
            Param::text("password"),
            Param::text("path").max_len(64).needs("privs").opt(),
            Param::named("privs", "pve-priv-list").max_len(64).needs("path").opt(),
            Param::named("realm", "pve-realm").max_len(32).opt(),
            Param::text("tfa-challenge").opt(),
            Param::text("username").max_len(64),
        ]])
        .protected()
        .no_token(),
    Endpoint::new("PUT", "/access/password", Allow::Special(own_user), run!(set_password))
        .takes(&[&[
            Param::text("confirmation-password").min_len(5).max_len(64).opt(),
            Param::text("password").min_len(8).max_len(64),
            USER,
        ]])
        .protected()
        .no_token(),
    Endpoint::new("GET", "/access/tfa", Allow::All, run!(no_tfa)).protected(),
    Endpoint::new("GET", "/access/permissions", Allow::All, run!(permissions)).takes(&[&[
        Param::text("path").opt(),
        Param::text("userid")
            .matches(
                "(?:^(?:[^\\s:/]+)\\@(?:[A-Za-z][A-Za-z0-9\\.\\-_]+)(?:!(?:[A-Za-z][A-Za-z0-9\\.\\-_]+))?$)",
            )
            .opt(),
    ]]),
    Endpoint::new("GET", "/access/acl", Allow::All, run!(list_acl)),
    Endpoint::new("PUT", "/access/acl", Allow::Special(may_change_path), run!(change_acl))
        .takes(&[&[
            Param::flag("delete").opt(),
            Param::named("groups", "pve-groupid-list").opt(),
            Param::text("path"),
            Param::flag("propagate").opt(),
            Param::named("roles", "pve-roleid-list"),
            Param::named("tokens", "pve-tokenid-list").opt(),
            Param::named("users", "pve-userid-list").opt(),
        ]])
        .protected(),
    Endpoint::new("GET", "/access/roles", Allow::All, run!(list_roles)),
    Endpoint::new("POST", "/access/roles", Allow::Has("/access", &["Sys.Modify"]), run!(make_role))
        .takes(&[&[Param::named("privs", "pve-priv-list").opt(), ROLE]])
        .protected(),
    Endpoint::new("GET", "/access/roles/{roleid}", Allow::All, run!(show_role)).takes(&[&[ROLE.path()]]),
    Endpoint::new("PUT", "/access/roles/{roleid}", Allow::Has("/access", &["Sys.Modify"]), run!(change_role))
        .takes(&[&[
            Param::flag("append").needs("privs").opt(),
            Param::named("privs", "pve-priv-list").opt(),
            ROLE.path(),
        ]])
        .protected(),
    Endpoint::new(
        "DELETE",
        "/access/roles/{roleid}",
        Allow::Has("/access", &["Sys.Modify"]),
        run!(drop_role),
    )
    .takes(&[&[ROLE.path()]])
    .protected(),
    Endpoint::new("GET", "/access/users", Allow::All, run!(list_users))
        .takes(&[&[Param::flag("enabled").opt(), Param::flag("full").opt()]])
        .protected(),
    Endpoint::new("POST", "/access/users", Allow::Special(may_make_user), run!(make_user))
        .takes(&[&[
            Param::text("comment").max_len(2048).opt(),
            Param::named("email", "email-opt").max_len(254).opt(),
            Param::flag("enable").opt(),
            Param::int("expire").min(0.0).opt(),
            Param::text("firstname").max_len(1024).opt(),
            Param::named("groups", "pve-groupid-list").opt(),
            Param::text("keys").matches("[0-9a-zA-Z!=]{0,4096}").opt(),
            Param::text("lastname").max_len(1024).opt(),
            Param::text("password").min_len(8).max_len(64).opt(),
            USER,
        ]])
        .protected(),
    Endpoint::new("GET", "/access/users/{userid}/token", Allow::Special(own_user), run!(list_tokens))
        .takes(&[&[USER.path()]]),
    Endpoint::new(
        "GET",
        "/access/users/{userid}/token/{tokenid}",
        Allow::Special(own_user),
        run!(show_token),
    )
    .takes(&[TOKEN_PATH]),
    Endpoint::new(
        "POST",
        "/access/users/{userid}/token/{tokenid}",
        Allow::Special(own_user),
        run!(make_token),
    )
    .takes(&[TOKEN_PATH, TOKEN_FACTS])
    .protected(),
    Endpoint::new(
        "DELETE",
        "/access/users/{userid}/token/{tokenid}",
        Allow::Special(own_user),
        run!(drop_token),
    )
    .takes(&[TOKEN_PATH])
    .protected(),
];

fn own_user(access: &Access, who: &Identity, given: &Map<String, Value>) -> Result<(), Failure> {
    let user = given.get("userid").map(raw_text).unwrap_or_default();
    let own = who.full() == user;
    if own || access.has(who, "/access/groups", "User.Modify") {
        return Ok(());
    }
    Err(Failure::forbidden_bare())
}

fn may_make_user(access: &Access, who: &Identity, _: &Map<String, Value>) -> Result<(), Failure> {
    let allowed = access.has(who, "/access/groups", "User.Modify")
        && access.has(who, "/access/realm/pve", "Realm.AllocateUser");
    if allowed { Ok(()) } else { Err(Failure::forbidden_bare()) }
}

fn may_change_path(access: &Access, who: &Identity, given: &Map<String, Value>) -> Result<(), Failure> {
    let path = given.get("path").map(raw_text).unwrap_or_default();
    access.check(who, &path, &["Permissions.Modify"])
}

async fn index(_: Call) -> Answer {
    let names =
        ["users", "groups", "roles", "acl", "domains", "openid", "tfa", "ticket", "password", "permissions"];
    let rows: Value = names[..9].iter().map(|name| json!({ "subdir": name })).collect();
    Ok(rows.into())
}

async fn domains(_: Call) -> Answer {
    Ok(json!([
        { "realm": "pam", "type": "pam", "comment": "Linux PAM standard authentication" },
        { "realm": "pve", "type": "pve", "comment": "Proxmox VE authentication server" },
    ])
    .into())
}

async fn no_ticket(_: Call) -> Answer {
    nothing()
}

async fn no_tfa(_: Call) -> Answer {
    Ok(json!([]).into())
}

async fn login(call: Call) -> Answer {
    let name = call.args.text("username");
    let user = match call.args.get("realm") {
        Some(realm) if !name.contains('@') => format!("{name}@{realm}"),
        _ => name.to_owned(),
    };
    let password = call.args.text("password");
    let known = {
        let world = call.sim.world();
        let found = world.access.users.get(&user).filter(|user| !user.disabled);
        found.is_some_and(|found| found.password.as_deref() == Some(password))
    };
    if !known && !auth::holds(&call.sim, &user, password) {
        return Err(Failure { delay: 3.0, ..Failure::new(401, "authentication failure\n") });
    }
    let cap = capabilities(&call.sim.world().access, &Identity { user: user.clone(), token: None });
    if let (Some(path), Some(privileges)) = (call.args.get("path"), call.args.get("privs")) {
        let who = Identity { user: user.clone(), token: None };
        let wanted: Vec<&str> = split_list(privileges).collect();
        call.sim.world().access.check(&who, path, &wanted)?;
        return Ok(json!({ "username": user, "cap": cap }).into());
    }
    let made = call.sim.clock.now();
    let second_factor = call.sim.world().access.users.get(&user).is_some_and(|user| user.tfa);
    if second_factor && !auth::holds(&call.sim, &user, password) {
        // No session yet: only the challenge's answer would make one.
        let ticket = format!("PVE:!tfa!%7B%22totp%22%3Atrue%7D:{made:08X}::{}", random::signature());
        let csrf = format!("{made:08X}:{}", random::digest());
        return Ok(json!({
            "username": user, "ticket": ticket, "CSRFPreventionToken": csrf, "cap": cap, "NeedTFA": 1,
        })
        .into());
    }
    let ticket = format!("PVE:{user}:{made:08X}::{}", random::signature());
    let csrf = format!("{made:08X}:{}", random::digest());
    let kept = Ticket { user: user.clone(), csrf: csrf.clone(), made };
    held(&call.sim.tickets).insert(ticket.clone(), kept);
    Ok(json!({ "username": user, "ticket": ticket, "CSRFPreventionToken": csrf, "cap": cap }).into())
}

/// What the web interface shows and hides by.
fn capabilities(access: &Access, who: &Identity) -> Value {
    let parts: [(&str, &str, &[&str], &[&str]); 7] = [
        ("access", "/access", &["User.", "Group.", "Permissions."], &[]),
        ("dc", "/", &["SDN."], &["Sys.Audit", "Sys.Modify"]),
        ("mapping", "/mapping", &["Mapping.", "Permissions."], &[]),
        ("nodes", "/nodes", &["Sys.", "Permissions."], &[]),
        ("sdn", "/sdn", &["SDN.", "Permissions."], &[]),
        ("storage", "/storage", &["Datastore.", "Permissions."], &[]),
        ("vms", "/vms", &["VM.", "Permissions."], &[]),
    ];
    let mut cap = Map::new();
    for (name, path, prefixes, exact) in parts {
        let held = access.held(who, path).into_keys().filter(|privilege| {
            prefixes.iter().any(|prefix| privilege.starts_with(prefix)) || exact.contains(&privilege.as_str())
        });
        let held: Map<String, Value> = held.map(|privilege| (privilege, json!(1))).collect();
        cap.insert(name.into(), Value::Object(held));
    }
    Value::Object(cap)
}

async fn set_password(call: Call) -> Answer {
    let mut world = call.sim.world();
    let user = call.args.text("userid");
    let known = world.access.users.get_mut(user).ok_or(format!("no such user ('{user}')"))?;
    known.password = Some(call.args.text("password").into());
    nothing()
}

async fn permissions(call: Call) -> Answer {
    let world = call.sim.world();
    let asked = call.args.get("userid").map_or_else(|| call.who.clone(), Identity::parse);
    if asked != call.who {
        let of_own_token = call.who.token.is_none() && asked.user == call.who.user;
        if !of_own_token {
            world.access.check(&call.who, "/access", &["Sys.Audit"])?;
        }
    }
    let shown = |held: BTreeMap<String, bool>| -> Value {
        held.into_iter()
            .map(|(name, propagate)| (name, json!(u8::from(propagate))))
            .collect::<Map<_, _>>()
            .into()
    };
    let found: Map<String, Value> = match call.args.get("path") {
        Some(path) => Map::from_iter([(path.to_owned(), shown(world.access.held(&asked, path)))]),
        None => world.access.overview(&asked).into_iter().map(|(path, held)| (path, shown(held))).collect(),
    };
    Ok(Value::Object(found).into())
}

async fn list_acl(call: Call) -> Answer {
    let world = call.sim.world();
    let rows = world
        .access
        .rules
        .iter()
        .filter(|rule| world.access.has(&call.who, &rule.path, "Permissions.Modify"))
        .map(|rule| {
            let kind = if rule.who.contains('!') { "token" } else { "user" };
            json!({
                "path": rule.path, "ugid": rule.who, "type": kind, "roleid": rule.role,
                "propagate": u8::from(rule.propagate),
            })
        });
    Ok(rows.collect::<Value>().into())
}

async fn change_acl(call: Call) -> Answer {
    let args = &call.args;
    let mut world = call.sim.world();
    let failed = |text: String| Failure::died(format!("ACL update failed: {text}"));
    let mut names = Vec::new();
    for user in split_list(args.text("users")) {
        if !world.access.users.contains_key(user) {
            return Err(failed(format!("user '{user}' does not exist")));
        }
        names.push(user.to_owned());
    }
    for token in split_list(args.text("tokens")) {
        let who = Identity::parse(token);
        let name = who.token.unwrap_or_default();
        let user = world.access.users.get(&who.user);
        if user.is_none_or(|user| !user.tokens.contains_key(&name)) {
            return Err(failed(format!("no such token '{name}' for user '{}'", who.user)));
        }
        names.push(token.to_owned());
    }
    for role in split_list(args.text("roles")) {
        if world.access.role(role).is_none() {
            return Err(failed(format!("role '{role}' does not exist")));
        }
        for who in &names {
            let path = args.text("path").to_owned();
            let propagate = args.get("propagate") != Some("0");
            let rule = Rule { path, who: who.clone(), role: role.into(), propagate };
            let same = |old: &Rule| old.path == rule.path && old.who == rule.who && old.role == rule.role;
            world.access.rules.retain(|old| !same(old));
            if !args.flag("delete") {
                world.access.rules.push(rule);
            }
        }
    }
    nothing()
}

async fn list_roles(call: Call) -> Answer {
    let roles = call.sim.world().access.all_roles();
    let rows = roles.into_iter().map(|(name, held, special)| {
        let privs: Vec<String> = held.into_iter().collect();
        json!({ "roleid": name, "privs": privs.join(","), "special": u8::from(special) })
    });
    Ok(rows.collect::<Value>().into())
}

async fn make_role(call: Call) -> Answer {
    let mut world = call.sim.world();
    let name = call.args.text("roleid");
    if world.access.role(name).is_some() {
        return Err(Failure::died(format!("create role failed: role '{name}' already exists")));
    }
    let held = split_list(call.args.text("privs")).map(String::from).collect();
    world.access.roles.insert(name.into(), held);
    nothing()
}

async fn show_role(call: Call) -> Answer {
    let name = call.args.text("roleid");
    let held = call.sim.world().access.role(name);
    let held = held.ok_or_else(|| format!("role '{name}' does not exist"))?;
    let shown: Map<String, Value> = held.into_iter().map(|name| (name, json!(1))).collect();
    Ok(Value::Object(shown).into())
}

async fn change_role(call: Call) -> Answer {
    let mut world = call.sim.world();
    let name = call.args.text("roleid");
    let append = call.args.flag("append");
    let role = world.access.roles.get_mut(name);
    let role = role.ok_or_else(|| format!("role '{name}' does not exist"))?;
    if !append {
        role.clear();
    }
    role.extend(split_list(call.args.text("privs")).map(String::from));
    nothing()
}

async fn drop_role(call: Call) -> Answer {
    let name = call.args.text("roleid");
    let gone = call.sim.world().access.roles.remove(name);
    gone.ok_or_else(|| format!("role '{name}' does not exist"))?;
    nothing()
}

async fn list_users(call: Call) -> Answer {
    let world = call.sim.world();
    let all = world.access.has(&call.who, "/access/groups", "User.Modify")
        || world.access.has(&call.who, "/access/groups", "Sys.Audit");
    let rows = world
        .access
        .users
        .iter()
        .filter(|(name, _)| all || **name == call.who.full())
        .map(|(name, user)| json!({ "userid": name, "enable": u8::from(!user.disabled), "expire": 0 }));
    Ok(rows.collect::<Value>().into())
}

async fn make_user(call: Call) -> Answer {
    let mut world = call.sim.world();
    let name = call.args.text("userid");
    if world.access.users.contains_key(name) {
        return Err(Failure::died(format!("create user failed: user '{name}' already exists")));
    }
    let user = User {
        password: call.args.get("password").map(Into::into),
        disabled: call.args.get("enable") == Some("0"),
        ..User::default()
    };
    world.access.users.insert(name.into(), user);
    nothing()
}

fn token_facts(token: &Token) -> Map<String, Value> {
    let mut facts = Map::new();
    facts.insert("privsep".into(), json!(u8::from(token.separated)));
    facts.insert("expire".into(), json!(token.expire));
    if let Some(comment) = &token.comment {
        facts.insert("comment".into(), json!(comment));
    }
    facts
}

async fn list_tokens(call: Call) -> Answer {
    let world = call.sim.world();
    let user = call.args.text("userid");
    let user = world.access.users.get(user).ok_or_else(|| format!("no such user ('{user}')"))?;
    let rows = user.tokens.iter().map(|(name, token)| {
        let mut facts = token_facts(token);
        facts.insert("tokenid".into(), json!(name));
        Value::Object(facts)
    });
    Ok(rows.collect::<Value>().into())
}

fn no_token(user: &str, token: &str) -> Failure {
    Failure::died(format!("no such token '{token}' for user '{user}'"))
}

async fn show_token(call: Call) -> Answer {
    let (user, name) = (call.args.text("userid"), call.args.text("tokenid"));
    let world = call.sim.world();
    let token = world.access.users.get(user).and_then(|user| user.tokens.get(name));
    let token = token.ok_or_else(|| no_token(user, name))?;
    Ok(Value::Object(token_facts(token)).into())
}

async fn make_token(call: Call) -> Answer {
    let (user, name) = (call.args.text("userid"), call.args.text("tokenid"));
    let mut world = call.sim.world();
    let owner = world.access.users.get_mut(user).ok_or_else(|| format!("no such user ('{user}')"))?;
    if owner.tokens.contains_key(name) {
        return Err(Failure::parameter("tokenid", "Token already exists."));
    }
    let token = Token {
        secret: random::uuid(),
        separated: call.args.get("privsep") != Some("0"),
        expire: call.args.get("expire").and_then(|text| text.parse().ok()).unwrap_or(0),
        comment: call.args.get("comment").map(Into::into),
    };
    let info = json!({
        "privsep": u8::from(token.separated).to_string(),
        "expire": token.expire.to_string(),
    });
    let answer = json!({ "full-tokenid": format!("{user}!{name}"), "value": token.secret, "info": info });
    owner.tokens.insert(name.into(), token);
    Ok(answer.into())
}

async fn drop_token(call: Call) -> Answer {
    let (user, name) = (call.args.text("userid"), call.args.text("tokenid"));
    let mut world = call.sim.world();
    let gone = world.access.users.get_mut(user).and_then(|user| user.tokens.remove(name));
    gone.ok_or_else(|| no_token(user, name))?;
    let full = format!("{user}!{name}");
    world.access.rules.retain(|rule| rule.who != full);
    nothing()
}
