"use strict";
// Shows the entries that fit every filter.
const facts = JSON.parse(document.getElementById("data").textContent);
const articles = [...document.querySelectorAll("article")];
const form = document.querySelector("form");

function filter() {
  const wanted = [...new FormData(form)].filter(([, value]) => value);
  let count = 0;
  articles.forEach((article, i) => {
    article.hidden = !wanted.every(([name, value]) => facts[i][name].includes(value));
    count += !article.hidden;
  });
  document.getElementById("count").textContent = `${count} of ${articles[0].dataset.total} shown, largest change first`;
}

form.addEventListener("input", filter);
form.addEventListener("submit", event => event.preventDefault());
filter();  // a reloaded page keeps what was chosen
