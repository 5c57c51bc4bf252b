"""Drives the API as python-gitlab does, and fails loudly where it would.

Usage: client.py URL TOKEN, against a server with the project team/site that
holds one commit.
"""

import base64
import datetime
import io
import sys
import tarfile
import warnings
from urllib.parse import quote

import gitlab

warnings.simplefilter("error")  # a Link to another host is a warning
warnings.simplefilter("ignore", ResourceWarning)
url, token = sys.argv[1:]


def fails(act, status, message):
    """Asserts that act raises python-gitlab's error with a status and a message."""
    try:
        act()
    except gitlab.exceptions.GitlabError as e:
        assert e.response_code == status and message in str(e), e
        return
    raise SystemExit(f"done, though it should fail with {status} {message}")



gl = gitlab.Gitlab(url, private_token=token)
gl.auth()
assert gl.user.username == "root" and gl.user.is_admin, gl.user
assert gl.user.web_url.startswith(url), gl.user.web_url
version, revision = gl.version()
assert version.split(".")[0].isdigit() and revision, (version, revision)
gitlab.Gitlab(url, oauth_token=token).auth()

# Lists: by page numbers, by Link, by keyset.
group = gl.groups.create({"name": "Py", "path": "py", "visibility": "private"})
made = [gl.projects.create({"name": f"P {i}", "namespace_id": group.id}) for i in range(7)]
assert made[0].path_with_namespace == "py/p-0", made[0]
paged = group.projects.list(iterator=True, per_page=3, order_by="id", sort="asc")
assert paged.total == 7 and paged.total_pages == 3 and paged.per_page == 3 and paged.next_page == 2, vars(paged)
assert [p.id for p in paged] == [p.id for p in made]
assert len(gl.projects.list(get_all=True, search="P ", per_page=2)) >= 7
keyset = gl.projects.list(iterator=True, pagination="keyset", order_by="id", sort="asc", per_page=3)
assert [p.id for p in keyset][-7:] == [p.id for p in made]
assert gl.groups.list(search="nothing-like-this") == []

# One project, by path and by id, changed and deleted.
project = gl.projects.get("py/p-0")
assert project.id == made[0].id and project.default_branch == "main" and project.empty_repo
project.description = "changed"
project.save()
assert gl.projects.get(project.id).description == "changed"
assert project.archive() is None and project.unarchive() is None
project.delete()
fails(lambda: gl.projects.get(project.id), 404, "404 Project Not Found")
fails(lambda: gl.projects.create({"name": "again", "path": "p-1", "namespace_id": group.id}), 400, "has already been taken")
try:
    gitlab.Gitlab(url, private_token="glpat-wrong").auth()
    raise SystemExit("a wrong token was taken")
except gitlab.exceptions.GitlabAuthenticationError as e:
    assert e.response_code == 401, e

# Code.
site = gl.projects.get("team/site")
name = ".gitlab/agents/prod/config.yaml"
file = site.files.get(file_path=name, ref="main")
assert file.decode() == b"flux: {}\n", file
assert base64.b64decode(file.content) == b"flux: {}\n"
assert site.files.raw(file_path=name, ref="v1") == b"flux: {}\n"
headers = gl.http_head(f"/projects/{site.encoded_id}/repository/files/{quote(name, safe='')}", query_data={"ref": "main"})
assert headers["X-Gitlab-File-Path"] == name, headers
head = site.commits.list(get_all=False)[0]
assert site.commits.get(head.id).title == "First"
assert {b.name for b in site.branches.list()} == {"main", "feature/x"}
assert site.branches.get("feature/x").commit["id"] == head.id
assert {t.name for t in site.tags.list()} == {"v1", "light"}
assert [e["path"] for e in site.repository_tree(recursive=True, get_all=True)][-1] == name

# People and tokens.
user = gl.users.create({"username": "monty", "name": "Monty", "email": "m@example.com", "reset_password": True})
assert gl.users.list(username="MONTY")[0].id == user.id
member = site.members.create({"user_id": user.id, "access_level": gitlab.const.DEVELOPER_ACCESS})
assert site.members.get(user.id).access_level == 30 and site.members_all.get(user.id).username == "monty"
member.access_level = gitlab.const.MAINTAINER_ACCESS
member.save()
member.delete()
deploy = site.deploytokens.create({"name": "pull", "scopes": ["read_repository"], "expires_at": "", "username": ""})
assert deploy.token.startswith("gldt-") and site.deploytokens.list()[0].id == deploy.id
deploy.delete()
until = (datetime.date.today() + datetime.timedelta(days=30)).isoformat()
access = site.access_tokens.create({"name": "ci", "scopes": ["api"], "expires_at": until})
assert access.token.startswith("glpat-") and access.expires_at == until, access
assert gitlab.Gitlab(url, private_token=access.token).projects.get("team/site").id == site.id
access.delete()
personal = user.personal_access_tokens.create({"name": "p", "scopes": ["read_api"]})
assert personal.user_id == user.id and personal.active
gl.personal_access_tokens.delete(personal.id)
assert gl.personal_access_tokens.list(user_id=user.id, state="active") == []
protected = site.protectedbranches.create({"name": "stable/*", "push_access_level": 40})
assert site.protectedbranches.get("stable/*").push_access_levels[0]["access_level"] == 40
protected.delete()
assert gl.namespaces.list(search="monty")[0].kind == "user"

# Agents, which this version of python-gitlab does not know.
agents = f"/projects/{site.encoded_id}/cluster_agents"
agent = gl.http_post(agents, post_data={"name": "prod"})
assert gl.http_list(agents, iterator=False)[0]["id"] == agent["id"]
secret = gl.http_post(f"{agents}/{agent['id']}/tokens", post_data={"name": "one"})
assert secret["token"].startswith("glagent-")
gl.http_delete(f"{agents}/{agent['id']}")

# Groups below groups, and sharing with a group.
child = gl.groups.create({"name": "Child", "path": "child", "parent_id": group.id, "visibility": "private"})
assert [g.id for g in group.subgroups.list()] == [child.id] and child.full_path == "py/child"
assert [g.full_path for g in group.descendant_groups.list(get_all=True)] == ["py/child"]
child.description = "changed"
child.save()
assert gl.groups.get("py/child").description == "changed"
site.share(child.id, gitlab.const.DEVELOPER_ACCESS)
shared = gl.projects.get(site.id).shared_with_groups
assert [(s["group_id"], s["group_access_level"]) for s in shared] == [(child.id, 30)], shared
fails(lambda: site.share(child.id, 30), 409, "already shared with this group")
site.unshare(child.id)
assert gl.projects.get(site.id).shared_with_groups == []

# Files and commits, made without a clone.
work = gl.projects.create({"name": "Work", "namespace_id": child.id})
first = work.commits.create({
    "branch": "main",
    "commit_message": "Several at once\n\nWith a body.",
    "author_name": "Monty", "author_email": "monty@example.com",
    "actions": [
        {"action": "create", "file_path": "a.txt", "content": "a\n"},
        {"action": "create", "file_path": "run.sh", "content": "#!/bin/sh\n"},
        {"action": "create", "file_path": "bytes", "content": base64.b64encode(bytes(range(256))).decode(), "encoding": "base64"},
    ],
})
assert first.title == "Several at once" and first.author_name == "Monty" and first.parent_ids == [], first
assert work.files.raw("bytes", ref="main") == bytes(range(256))
second = work.commits.create({
    "branch": "topic", "start_branch": "main", "commit_message": "Every action",
    "actions": [
        {"action": "update", "file_path": "a.txt", "content": "b\n"},
        {"action": "move", "file_path": "b/moved", "previous_path": "bytes"},
        {"action": "chmod", "file_path": "run.sh", "execute_filemode": True},
        {"action": "create", "file_path": "c.txt", "content": "c\n"},
    ],
})
assert second.parent_ids == [first.id]
modes = {e["path"]: e["mode"] for e in work.repository_tree(ref="topic", recursive=True, get_all=True)}
assert modes["run.sh"] == "100755" and "b/moved" in modes and "bytes" not in modes, modes
changed = {d["new_path"] for d in second.diff()}
assert changed == {"a.txt", "b/moved", "run.sh", "c.txt"}, changed
assert {r["name"] for r in second.refs("branch")} == {"topic"}
compared = work.repository_compare("main", "topic")
assert [c["id"] for c in compared["commits"]] == [second.id] and len(compared["diffs"]) == 4
assert tarfile.open(fileobj=io.BytesIO(work.repository_archive(sha="topic", format="tar.gz"))).getnames()
fails(lambda: work.commits.create({"branch": "main", "commit_message": "m", "actions": [
    {"action": "create", "file_path": "new.txt", "content": "n"},
    {"action": "create", "file_path": "a.txt", "content": "again"},
]}), 400, "A file with this name already exists")
fails(lambda: work.files.get("new.txt", ref="main"), 404, "404 File Not Found")  # all or nothing

made_file = work.files.create({"file_path": "docs/x.md", "branch": "main", "content": "one\n", "commit_message": "Add"})
assert made_file.file_path == "docs/x.md"
file = work.files.get("docs/x.md", ref="main")
file.content = "two\n"
file.save(branch="main", commit_message="Change")
assert work.files.raw("docs/x.md", ref="main") == b"two\n"
fails(lambda: work.files.create({"file_path": "docs/x.md", "branch": "main", "content": "", "commit_message": "m"}), 400, "A file with this name already exists")
file.delete(branch="main", commit_message="Remove")
fails(lambda: work.files.get("docs/x.md", ref="main"), 404, "404 File Not Found")
history = work.commits.list(query_parameters={"ref_name": "main", "path": "docs/x.md"}, get_all=True)
assert [c.title for c in history] == ["Remove", "Change", "Add"], history

# Branches and tags.
branch = work.branches.create({"branch": "release/1", "ref": "main"})
assert branch.commit["id"] == history[0].id
fails(lambda: work.branches.create({"branch": "release/1", "ref": "main"}), 400, "Branch already exists")
branch.delete()
fails(lambda: work.branches.get("release/1"), 404, "404 Branch Not Found")
tag = work.tags.create({"tag_name": "v1", "ref": "topic", "message": "annotated"})
assert tag.commit["id"] == second.id and tag.message == "annotated" and tag.target != second.id
for i in range(5):
    work.tags.create({"tag_name": f"t{i}", "ref": "main"})
assert len(work.tags.list(get_all=True, per_page=2)) == 6
assert work.protectedtags.create({"name": "v*", "create_access_level": 40}).name == "v*"
work.protectedtags.delete("v*")
tag.delete()
fails(lambda: work.tags.get("v1"), 404, "404 Tag Not Found")

# Keys.
key = "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(range(32))).decode()
deploy_key = work.keys.create({"title": "flux", "key": key, "can_push": False})
assert deploy_key.can_push is False and [k.id for k in work.keys.list()] == [deploy_key.id]
deploy_key.can_push = True
deploy_key.save()
assert work.keys.get(deploy_key.id).can_push is True
deploy_key.delete()
mine = gl.user.keys.create({"title": "laptop", "key": key})
assert gl.user.keys.get(mine.id).title == "laptop"
mine.delete()
fails(lambda: work.keys.create({"title": "bad", "key": "not a key"}), 400, "key")

# Tokens that replace themselves: this version of python-gitlab has no method.
token = work.access_tokens.create({"name": "bot", "scopes": ["api"], "access_level": 40, "expires_at": until})
rotated = gl.http_post(f"/projects/{work.id}/access_tokens/{token.id}/rotate", post_data={"expires_at": until})
assert rotated["token"] != token.token and rotated["name"] == "bot" and rotated["id"] != token.id, rotated
assert gitlab.Gitlab(url, private_token=rotated["token"]).projects.get(work.id).id == work.id
fails(lambda: gitlab.Gitlab(url, private_token=token.token).projects.get(work.id), 401, "")
group_deploy = child.deploytokens.create({"name": "all", "scopes": ["read_repository", "api"]})
assert sorted(group_deploy.scopes) == ["api", "read_repository"] and [t.id for t in child.deploytokens.list()] == [group_deploy.id]
group_deploy.delete()

# Variables.
work.variables.create({"key": "PLAIN", "value": "one"})
secret_variable = work.variables.create({"key": "SECRET", "value": "masked-value", "masked": True, "protected": True, "environment_scope": "prod/*"})
assert secret_variable.masked and secret_variable.protected and secret_variable.environment_scope == "prod/*"
plain = work.variables.get("PLAIN")
plain.value = "two"
plain.save()
assert {v.key: v.value for v in work.variables.list()}["PLAIN"] == "two"
plain.delete()
fails(lambda: work.variables.get("PLAIN"), 404, "404 Variable Not Found")
child.variables.create({"key": "GROUP", "value": "x"})
assert [v.key for v in child.variables.list()] == ["GROUP"]

# Hooks: the token is written, never read.
hook = work.hooks.create({"url": "https://hooks.example.com/x", "token": "hook-secret", "push_events": True, "tag_push_events": True})
assert hook.push_events and hook.tag_push_events and "hook-secret" not in str(work.hooks.get(hook.id).attributes)
hook.tag_push_events = False
hook.save()
assert work.hooks.get(hook.id).tag_push_events is False
hook.delete()
assert work.hooks.list() == []

# What others say of a commit, and what runs where.
commit = work.commits.get("main")
running = commit.statuses.create({"state": "running", "name": "build", "target_url": "https://ci.example.com/1"})
assert running.status == "running" and running.name == "build"
commit.statuses.create({"state": "success", "name": "build", "description": "done"})
assert [(s.name, s.status) for s in commit.statuses.list()] == [("build", "success")]
fails(lambda: commit.statuses.create({"state": "no-such-state", "name": "build"}), 400, "")
pipelines = work.pipelines.list(sha=commit.id)
assert [(p.status, p.source) for p in pipelines] == [("success", "external")], pipelines
assert work.pipelines.get(pipelines[0].id).sha == commit.id
prod = work.environments.create({"name": "prod/eu", "external_url": "https://eu.example.com"})
assert prod.slug and work.environments.list(name="prod/eu")[0].id == prod.id
deployment = work.deployments.create({"environment": "prod/eu", "sha": commit.id, "ref": "main", "tag": False, "status": "running"})
deployment.status = "success"
deployment.save()
assert work.environments.get(prod.id).last_deployment["status"] == "success"
prod.external_url = "https://new.example.com"
prod.save()
prod.stop()
assert work.environments.get(prod.id).state == "stopped"
prod.delete()

group.delete()
print("ok")
